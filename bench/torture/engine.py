"""What an engine does to its KV cache, without a model: blocks are taken, written, handed over, freed, used again.

Owns a small cache and who has which block of it. A free block holds a mark that nobody but a late writer changes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import torch

LAYERS: Final = 4
BLOCKS: Final = 96
BLOCK_BYTES: Final = 2048
_MARK: Final = 0xA5


class BlockPool:
    """All and only blocks that are not taken are free and marked."""

    def __init__(self) -> None:
        self.cache = {
            f"layer.{layer}": torch.full((BLOCKS, BLOCK_BYTES), _MARK, dtype=torch.uint8) for layer in range(LAYERS)
        }
        self._free = list(range(BLOCKS))
        self.spoiled = 0  # free blocks that somebody wrote

    def take(self, count: int, chance: random.Random) -> list[int] | None:
        """Take some blocks, wherever they lie; None when there are too few. Counts those that lost their mark."""
        if count > len(self._free):
            return None
        chance.shuffle(self._free)
        taken, self._free = self._free[:count], self._free[count:]
        for cache in self.cache.values():
            self.spoiled += int((cache[taken] != _MARK).any(dim=1).sum())
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        """Free blocks, and mark them as the next request would overwrite them."""
        for cache in self.cache.values():
            cache[list(blocks)] = _MARK
        self._free += blocks

    def fill(self, blocks: Sequence[int], seed: int) -> None:
        """Write the KV of a prompt."""
        for layer, cache in enumerate(self.cache.values()):
            cache[list(blocks)] = kv_of(seed, layer, len(blocks))

    def differs(self, blocks: Sequence[int], seed: int, *, first: int, of: int) -> int:
        """Count the blocks that do not hold the KV of a prompt of `of` blocks from number `first` on."""
        wrong = torch.zeros(len(blocks), dtype=torch.bool)
        for layer, cache in enumerate(self.cache.values()):
            wrong |= (cache[list(blocks)] != kv_of(seed, layer, of)[first : first + len(blocks)]).any(dim=1)
        return int(wrong.sum())


def kv_of(seed: int, layer: int, num_blocks: int) -> torch.Tensor:
    """Make the KV of one layer of a prompt, the same each time."""
    generator = torch.Generator().manual_seed(seed * LAYERS + layer)
    return torch.randint(0, 256, (num_blocks, BLOCK_BYTES), dtype=torch.uint8, generator=generator)
