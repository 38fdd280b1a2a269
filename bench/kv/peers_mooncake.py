"""Mooncake's transfer engine over TCP, the receiver reading scattered blocks in batches.

Its wheel without CUDA needs the system's libibverbs and librdmacm. Runs in the peers' environment.
"""

from __future__ import annotations

import json
from time import monotonic
from typing import Any, Final

import numpy as np

from bench.kv.cache import BLOCK_BYTES, LAYERS, Bytes, Ids, Job
from bench.kv.side import Side, Span

_BATCH: Final = 128  # one of 8,192 failed, batches of 128 did not


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that is read."""
    return _End(cache, reads=False)


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that reads."""
    return _End(cache, reads=True)


class _End:
    def __init__(self, cache: Bytes, *, reads: bool) -> None:
        from mooncake.engine import TransferEngine  # type: ignore[import-not-found, unused-ignore]

        self._cache, self._reads = cache, reads
        self._engine: Any = TransferEngine()
        _check(self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""))
        _check(self._engine.register_memory(cache.ctypes.data, cache.nbytes))
        self.address = json.dumps({"session": f"127.0.0.1:{self._engine.get_rpc_port()}", "base": cache.ctypes.data})
        self._session, self._base = "", 0

    def meet(self, address: str) -> None:
        other = json.loads(address)
        self._session, self._base = other["session"], other["base"]

    def prepare(self, job: Job) -> None:
        """Nothing is prepared."""

    def run(self, job: Job) -> Span:
        if not self._reads:
            return Span()
        began_s = monotonic()
        here = _addresses(self._cache.ctypes.data, job.cache_blocks, job.target)
        there = _addresses(self._base, job.cache_blocks, job.source)
        for start in range(0, len(here), _BATCH):
            local, remote = here[start : start + _BATCH], there[start : start + _BATCH]
            sizes = [BLOCK_BYTES] * len(local)
            _check(self._engine.batch_transfer_sync_read(self._session, local, remote, sizes))
        return Span(began_s, monotonic())

    def close(self) -> None:
        """The engine ends with the process."""


def _addresses(base: int, cache_blocks: int, blocks: Ids) -> list[int]:
    layers = np.arange(LAYERS, dtype=np.int64)[:, None] * cache_blocks
    places: list[int] = ((layers + blocks).reshape(-1) * BLOCK_BYTES + base).tolist()
    return places


def _check(result: int) -> None:
    if result != 0:
        raise RuntimeError(f"Mooncake's transfer engine returned {result}")
