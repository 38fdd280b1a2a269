"""End-to-end digests of sampled hand-overs: of the blocks in prefill's cache, and of the same blocks in decode's.

Owns what is digested and which hand-overs are. A frame's checksum vouches for its way from staging memory to the rows
it landed in; the digest vouches for all that lies around: the copy out of the cache, the choice of blocks on both
sides, the copy into a GPU, and writers that come late. Both sides read their caches anew for it.

A block's digest is the sum over its layers of xxh3, seeded by layer and place; a hand-over's is the sum over its
blocks, so that the sender need not know beforehand which of them the receiver lacks.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import xxhash

from core.errors import CorruptFrame, DigestMismatch
from kv_transfer.block_io import BlockIO

ALWAYS: Final = 3  # hand-overs to a new peer, or to one with which something failed, that are digested in any case
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_DIGEST = struct.Struct("<Q")
_MAX_PEERS: Final = 1024
_READ_BYTES: Final = 4 << 20  # of the cache, at a time


class SendDigests:
    """Digests of the hand-overs that were chosen; begun and filled by the engine thread, read by the KV thread."""

    def __init__(self, io: BlockIO, *, share: float, rng: random.Random | None = None) -> None:
        """Choose a `share` of hand-overs beside the first few to each peer; 0: none at all."""
        self._io = io
        self._share = share
        self._rng = rng or random.Random()
        self._sums: dict[str, list[int]] = {}  # all and only open hand-overs that were chosen: a sum for each block
        self._vouched: OrderedDict[str, int] = OrderedDict()  # landed and digested in a row, by peer
        self.count = 0

    def begin(self, transfer_id: str, peer: str, num_blocks: int) -> None:
        """Choose whether a hand-over is digested."""
        if not self._share:
            return
        if self._vouched.get(peer, 0) < ALWAYS or self._rng.random() < self._share:
            self._sums[transfer_id] = [0] * num_blocks

    def add(self, transfer_id: str, layer: int, first_block: int, block_ids: Sequence[int]) -> None:
        """Digest blocks of one layer as they are in the cache, if their hand-over was chosen."""
        sums = self._sums.get(transfer_id)
        if sums is None:
            return
        for index, digest in enumerate(_digests(self._io, layer, first_block, block_ids), first_block):
            sums[index] += digest

    def payload(self, transfer_id: str, first_block: int) -> bytes:
        """Encode the digest of the blocks from `first_block` on, for the END frame; nothing if it was not chosen."""
        sums = self._sums.get(transfer_id)
        return b"" if sums is None else _DIGEST.pack(sum(sums[first_block:]) & _MASK)

    def end(self, transfer_id: str, peer: str, *, landed: bool) -> None:
        """Forget a hand-over; one that failed puts its peer under watch again."""
        chosen = self._sums.pop(transfer_id, None) is not None
        self.count += chosen
        if not landed:
            self._vouched.pop(peer, None)
        elif chosen:
            self._vouched[peer] = self._vouched.get(peer, 0) + 1
            self._vouched.move_to_end(peer)
            while len(self._vouched) > _MAX_PEERS:
                self._vouched.popitem(last=False)


async def check_digest(io: BlockIO, payload: bytes, first_block: int, block_ids: Sequence[int]) -> None:
    """Compare what came in an END frame with the blocks as they are in this cache, if anything came.

    Reads layer by layer and lets other tasks run in between. Raises DigestMismatch, CorruptFrame.
    """
    if not payload:
        return
    if len(payload) != _DIGEST.size:
        raise CorruptFrame(f"a digest has {_DIGEST.size} bytes, not {len(payload)}")
    total = 0
    for layer in range(io.num_layers):
        total += sum(_digests(io, layer, first_block, block_ids))
        await asyncio.sleep(0)
    if total & _MASK != _DIGEST.unpack(payload)[0]:
        raise DigestMismatch(f"the {len(block_ids)} blocks that landed are not those of the prefill side's cache")


def _digests(io: BlockIO, layer: int, first_block: int, block_ids: Sequence[int]) -> list[int]:
    """Read blocks of one layer out of the cache and digest each by its place."""
    step = max(1, _READ_BYTES // io.block_bytes)
    digests = []
    for start in range(0, len(block_ids), step):
        ids = block_ids[start : start + step]
        data = memoryview(bytearray(len(ids) * io.block_bytes))
        io.gather_into(layer, ids, data)
        for index in range(len(ids)):
            block = data[index * io.block_bytes : (index + 1) * io.block_bytes]
            seed = layer << 32 | (first_block + start + index)
            digests.append(xxhash.xxh3_64_intdigest(block, seed=seed))
    return digests
