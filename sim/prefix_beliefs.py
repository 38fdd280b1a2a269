"""What the simulated router believes of the workers' prefix caches: the live router's index, fed by its decisions.

Owns how a workload's prefix blocks become the pieces that the index knows. What the workers really have cached is the
kernel's affair (sim.kernel.prefixes) and may differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from core.policy.prefix_index import PIECE_ENDS, PrefixIndex
from core.types import WorkerHello
from sim.workload import Workload

_MAX_BYTES: Final = 256 << 20  # more than any trace needs: forgetting for want of memory has tests of its own
_ENDS: Final = np.array(PIECE_ENDS, np.int64)
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)  # of Weyl's sequence in SplitMix64 (Steele, Lea and Flood, 2014)
_PLACE: Final = np.uint64(0xBF58476D1CE4E5B9)


class PrefixBeliefs:
    """Tells where a request's prompt is believed to be cached; empty for workloads without prefixes."""

    def __init__(self, workload: Workload, workers: Iterable[WorkerHello]) -> None:
        """Take the requests and the workers, whose caches are empty."""
        self._start, self._ids = workload.prefix_start, workload.prefix_ids.astype(np.uint64)
        self._block_tokens = workload.prefix_block_tokens
        self._index = PrefixIndex(_MAX_BYTES if len(self._start) else 0)
        for worker in workers:
            size = worker.fingerprint.block_size
            self._index.join(worker.worker_id, epoch=worker.epoch, num_kv_blocks=worker.num_kv_blocks, block_size=size)

    def cached(self, request: int) -> tuple[tuple[str, int], ...]:
        """List (worker id, prompt tokens believed in its cache), by worker id."""
        return self._index.lookup(self._pieces(request)) if len(self._start) else ()

    def record(self, worker_id: str, request: int) -> None:
        """Believe that a worker will have computed a request's prompt."""
        if len(self._start):
            self._index.record(worker_id, self._pieces(request))

    def _pieces(self, request: int) -> tuple[int, ...]:
        """Hash the pieces that whole prefix blocks cover: equal ids at equal places are equal prefixes."""
        ids = self._ids[self._start[request] : self._start[request + 1]]
        count = int(np.searchsorted(_ENDS, len(ids) * self._block_tokens, side="right"))
        ends = _ENDS[:count]
        hashes = ids[(ends - 1) // self._block_tokens] * _STEP + ends.astype(np.uint64) * _PLACE
        return tuple(hashes.tolist())
