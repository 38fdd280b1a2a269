"""The payload of a frame that still lies in the sender's KV cache, block by block.

Owns how it is named to a peer that maps the cache, and how it is copied out for one that does not. Must not know who
keeps the blocks from being overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kv_transfer.block_io import BlockIO
from kv_transfer.vectored import RowDigest


@dataclass(frozen=True, slots=True)
class CachedBlocks:
    """The same blocks of some layers in a row."""

    io: BlockIO  # whose cache is shared
    layers: range
    block_ids: Sequence[int]

    @property
    def size_bytes(self) -> int:
        """All blocks of all layers."""
        return len(self.layers) * len(self.block_ids) * int(self.io.block_bytes)

    def offsets(self) -> bytes:
        """Say where each block lies in the memory of the cache; kv_transfer.shared_cache says how."""
        assert self.io.shared is not None, "blocks are left in a cache that is shared only"
        return self.io.shared.offsets(self.layers, self.block_ids)

    def copy_to(self, view: memoryview) -> None:
        """Copy the blocks to `view`, back to back."""
        size = len(self.block_ids) * self.io.block_bytes
        for index, layer in enumerate(self.layers):
            self.io.gather_into(layer, self.block_ids, view[index * size : (index + 1) * size])

    def digest(self) -> int:
        """Work out the digest of the payload."""
        digest = RowDigest()
        digest.feed(self.io.addresses(self.layers, self.block_ids), self.io.block_bytes)
        return digest.intdigest()

    def part(self, layer: int, first: int) -> CachedBlocks:
        """Take the blocks of one layer from number `first` on."""
        return CachedBlocks(self.io, range(layer, layer + 1), self.block_ids[first:])
