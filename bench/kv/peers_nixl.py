"""NIXL as vLLM's NixlConnector uses it: every block of both caches described once, then the receiver reads some.

UCX chooses its own way between the two processes. Runs in the peers' environment.
"""

from __future__ import annotations

import base64
import json
from time import monotonic
from typing import Any, Final

import numpy as np

from bench.kv.cache import BLOCK_BYTES, LAYERS, Bytes, Ids, Job
from bench.kv.side import Side, Span

_TIMEOUT_S: Final = 120.0


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that is read."""
    return _End(cache, "prefill")


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that reads."""
    return _End(cache, "decode")


class _End:
    def __init__(self, cache: Bytes, name: str) -> None:
        from nixl._api import nixl_agent, nixl_agent_config  # type: ignore[import-not-found, unused-ignore]

        self._cache, self._reads = cache, name == "decode"
        self._agent: Any = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
        self._memory = self._agent.register_memory([(cache.ctypes.data, cache.nbytes, 0, "")], "DRAM")
        metadata = base64.b64encode(self._agent.get_agent_metadata()).decode()
        self.address = json.dumps({"metadata": metadata, "base": cache.ctypes.data})
        self._here: Any = None
        self._there: Any = None
        self._peer = ""

    def meet(self, address: str) -> None:
        if not self._reads:
            return
        other = json.loads(address)
        self._peer = self._agent.add_remote_agent(base64.b64decode(other["metadata"]))
        self._agent.make_connection(self._peer)
        blocks = self._cache.shape[1]
        self._here = self._agent.prep_xfer_dlist("NIXL_INIT_AGENT", _places(self._cache.ctypes.data, blocks), "DRAM")
        self._there = self._agent.prep_xfer_dlist(self._peer, _places(other["base"], blocks), "DRAM")

    def prepare(self, job: Job) -> None:
        """Take note of reads that ended, as an engine does with each step."""
        self._agent.get_new_notifs()

    def run(self, job: Job) -> Span:
        if not self._reads:
            return Span()
        began_s = monotonic()
        layers = np.arange(LAYERS, dtype=np.int64)[:, None] * job.cache_blocks
        handle = self._agent.make_prepped_xfer(
            "READ", self._here, _flat(layers, job.target), self._there, _flat(layers, job.source), b"done"
        )
        state = self._agent.transfer(handle)
        while state not in ("DONE", "ERR"):
            state = self._agent.check_xfer_state(handle)
            if monotonic() - began_s > _TIMEOUT_S:
                raise TimeoutError("NIXL's read did not end")
        ended_s = monotonic()
        self._agent.release_xfer_handle(handle)
        if state == "ERR":
            raise RuntimeError("NIXL reports an error")
        return Span(began_s, ended_s)

    def close(self) -> None:
        self._agent.deregister_memory(self._memory)


def _flat(layers: Ids, blocks: Ids) -> Ids:
    return (layers + blocks).reshape(-1)


def _places(base: int, blocks: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Describe every block of every layer: (LAYERS * blocks, 3) of address, size and device."""
    starts = np.arange(LAYERS * blocks, dtype=np.uint64) * np.uint64(BLOCK_BYTES) + np.uint64(base)
    return np.stack([starts, np.full_like(starts, BLOCK_BYTES), np.zeros_like(starts)], 1)
