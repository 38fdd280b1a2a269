"""A paged KV cache of Llama-3-8B's shape, and jobs that name scattered blocks of it.

Owns shape, memory and contents. Must not know how bytes travel.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LAYERS: Final = 32
BLOCK_TOKENS: Final = 16
BLOCK_BYTES: Final = BLOCK_TOKENS * 8 * 128 * 2 * 2  # KV heads, head size, K and V, bfloat16: of one layer
_PROBED: Final = (0, 1, BLOCK_BYTES // 16, BLOCK_BYTES // 8 - 1)  # words of each block that are checked

Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt's KV: which blocks leave, and where they arrive."""

    number: int
    tokens: int
    cache_blocks: int
    layer_ms: float = 0.0  # what the sender's engine computes at each layer; 0: all is there at once

    @property
    def num_blocks(self) -> int:
        """Blocks of each layer."""
        return self.tokens // BLOCK_TOKENS

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return self.num_blocks * LAYERS * BLOCK_BYTES

    @property
    def source(self) -> Ids:
        """Blocks of the sender's cache, in the order of the prompt."""
        return self._scattered(1)

    @property
    def target(self) -> Ids:
        """Blocks of the receiver's cache, in the same order."""
        return self._scattered(2)

    def _scattered(self, side: int) -> Ids:
        order = np.random.default_rng((self.number, side)).permutation(self.cache_blocks)
        return order[: self.num_blocks].astype(np.int64)


def blocks_for(tokens: int) -> int:
    """Return how many blocks a cache shall have so that a prompt of `tokens` lies scattered in it."""
    needed = tokens // BLOCK_TOKENS
    return needed + max(needed // 8, 8)


def empty_cache(num_blocks: int) -> Bytes:
    """Allocate and touch a cache: (LAYERS, num_blocks, BLOCK_BYTES), private memory, huge pages where there are."""
    size = LAYERS * num_blocks * BLOCK_BYTES
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    cache = np.frombuffer(memory, dtype=np.uint8).reshape(LAYERS, num_blocks, BLOCK_BYTES)
    cache.fill(0)
    return cache


def full_cache(num_blocks: int) -> Bytes:
    """Allocate a cache whose every word says which layer and block it belongs to."""
    cache = empty_cache(num_blocks)
    words = cache.view(np.uint64)
    for layer in range(LAYERS):
        words[layer] = _word(layer, np.arange(num_blocks))[:, None]
    return cache


def wipe(cache: Bytes, job: Job) -> None:
    """Clear the words of the receiver's blocks that `wrong_blocks` looks at."""
    words = cache.view(np.uint64)
    for word in _PROBED:
        words[:, job.target, word] = 0


def wrong_blocks(cache: Bytes, job: Job) -> int:
    """Count the blocks, over all layers, that do not hold what the sender's hold."""
    words: npt.NDArray[Any] = cache.view(np.uint64)
    wrong = np.zeros((LAYERS, job.num_blocks), bool)
    for layer in range(LAYERS):
        for word in _PROBED:
            wrong[layer] |= words[layer, job.target, word] != _word(layer, job.source)
    return int(wrong.sum())


def _word(layer: int, blocks: Ids) -> npt.NDArray[np.uint64]:
    return blocks.astype(np.uint64) + np.uint64((layer + 1) << 32)
