"""Which nodes of Ray answer: their node process is asked for a sign of life.

Ray lists a node as alive until its own health check has failed for about 15 s; a worker placed there meanwhile waits
for nothing. Owns the question and its bound. Must not know what runs on a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Final

from cluster.placement import Node

ANSWER_S: Final = 2.0  # a node process that lives answers in milliseconds
# The opening of HTTP/2 with empty settings (RFC 9113, 3.4), to which every server answers with settings of its own.
_OPENING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


async def answering(
    nodes: Sequence[Node], *, environ: Mapping[str, str] = os.environ, within_s: float = ANSWER_S
) -> tuple[Node, ...]:
    """Return the nodes whose process answers `within_s`, in order; those whose process has no address are kept.

    A stopped process accepts a connection and says nothing, so that an open port is no answer. All are kept when Ray
    speaks TLS, in which its processes are silent until they know who asks.
    """
    if environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return tuple(nodes)
    answers = await asyncio.gather(*(_answers(node.process_address, within_s) for node in nodes))
    return tuple(node for node, answered in zip(nodes, answers, strict=True) if answered)


async def _answers(address: str, within_s: float) -> bool:
    if not address:
        return True
    host, _, port = address.rpartition(":")
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.write(_OPENING)
            return bool(await reader.read(1))
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                writer.transport.abort()
