"""How the receiver's end of a stream is left: what the sender is still told, and what it still said.

Must not know why.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from core.errors import KVTransferError
from kv_transfer.frames import Header, Kind, Problem, problem_frame
from kv_transfer.transport import Incoming

_ANSWER_S: Final = 1.0  # how long a sender may take to take a refusal


async def answer(incoming: Incoming, kind: Kind, error: KVTransferError) -> None:
    """Say why a hand-over ended, if the sender can still be told."""
    with contextlib.suppress(KVTransferError, TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            await incoming.write(problem_frame(kind, Problem(error.name, str(error))))


async def drop(reading: asyncio.Future[Header]) -> None:
    """Stop waiting for a frame, and take what has come instead."""
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
