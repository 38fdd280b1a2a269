"""The engine thread's part: blocks of one layer after the other, copied out of the cache or left in it, in frames.

Owns how a prompt is divided into frames: a layer of a long one into several, several layers of a short one into one.
Each frame costs some Python on both sides, whatever is in it. A frame that is left in the cache, for a peer that reads
it there, is digested only. Must not know streams or what becomes of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Protocol

from kv_transfer.block_io import BlockIO
from kv_transfer.cached_blocks import CachedBlocks
from kv_transfer.faults import SendFaults
from kv_transfer.frames import Digest, blocks_header, digested_header, transfer_seed
from kv_transfer.staging import Segment
from kv_transfer.vectored import RowDigest

FRAME_BYTES: Final = 2 << 20  # the most blocks of one layer in a frame that is copied
CACHED_FRAME_BYTES: Final = 8 << 20  # and in one that stays in the cache: it takes no memory, and 60 us in Python
GROUP_BYTES: Final = 2 << 20  # layers of a short prompt wait for the next up to this size, none beyond the step


class Frames(Protocol):
    """What frames are handed to; kv_transfer.sender says what each call does."""

    def stays_in_cache(self, transfer_id: str) -> bool:
        """Whether the blocks of a hand-over may be left where they are."""
        ...

    def take(self, transfer_id: str, size: int) -> Segment | None:
        """Take memory for one frame; None when it is not wanted."""
        ...

    def put(
        self,
        transfer_id: str,
        segment: Segment | None,
        *,
        layer: int,
        first_block: int,
        num_blocks: int,
        header: bytes,
        cached: CachedBlocks | None = None,
    ) -> None:
        """Hand a filled segment over, or blocks in the cache."""
        ...


@dataclass(slots=True)
class _Group:
    """A frame that the next layers may still go into."""

    segment: Segment | None  # room for all layers that fit; None: they stay in the cache
    room_bytes: int
    digest: Digest | RowDigest
    layer: int
    first_block: int
    block_ids: Sequence[int]
    num_layers: int = 0  # that are in it
    num_bytes: int = 0  # of those


class Stager:
    """Makes frames for all hand-overs of one engine rank; called from the engine thread only."""

    def __init__(self, io: BlockIO, sender: Frames, group_bytes: int = GROUP_BYTES) -> None:
        """Put as many layers into one frame as `group_bytes` hold; 0: each into its own."""
        self._io = io
        self._sender = sender
        self._group_bytes = group_bytes
        self._open: dict[str, _Group] = {}  # all and only frames with room for a layer more, by transfer id

    def stage(
        self,
        transfer_id: str,
        layer: int,
        first_block: int,
        block_ids: Sequence[int],
        faults: SendFaults | None = None,
        *,
        stays: bool = False,
    ) -> None:
        """Take blocks of one layer into frames, which leave with `flush` at the latest.

        Those that are copied are the caller's again on return; those that stay in the cache, when the sender says so.
        None does unless the caller allows it by `stays`.
        """
        if faults is not None:
            self._stage_faulty(transfer_id, layer, first_block, block_ids, faults)
            return
        stays = stays and self._io.shared is not None and self._sender.stays_in_cache(transfer_id)
        for start, end in self._frames_of(len(block_ids), CACHED_FRAME_BYTES if stays else FRAME_BYTES):
            self._add(transfer_id, layer, first_block + start, block_ids[start:end], stays=stays)

    def flush(self) -> None:
        """Hand over every frame that still has room; at the end of each step, so that none waits for a later one."""
        for transfer_id in list(self._open):
            self._put(transfer_id)

    def _frames_of(self, num_blocks: int, most_bytes: int) -> Iterator[tuple[int, int]]:
        """Divide blocks of a layer evenly: (first, end)."""
        count = max(1, -(-num_blocks * self._io.block_bytes // most_bytes))
        return pairwise(num_blocks * index // count for index in range(count + 1))

    def _add(self, transfer_id: str, layer: int, first_block: int, block_ids: Sequence[int], *, stays: bool) -> None:
        group = self._open.get(transfer_id)
        if group is not None and not self._continues(group, layer, first_block, block_ids):
            self._put(transfer_id)
            group = None
        if group is None:
            group = self._begin(transfer_id, layer, first_block, block_ids, stays=stays)
            if group is None:
                return
        layer_bytes = len(block_ids) * self._io.block_bytes
        if isinstance(group.digest, RowDigest):
            group.digest.feed(self._io.addresses(range(layer, layer + 1), block_ids), self._io.block_bytes)
        elif group.segment is not None:
            view = group.segment.view[group.num_bytes : group.num_bytes + layer_bytes]
            self._io.gather_into(layer, block_ids, view, group.digest)
        group.num_layers += 1
        group.num_bytes += layer_bytes
        if group.num_bytes == group.room_bytes:
            self._put(transfer_id)

    def _begin(
        self, transfer_id: str, layer: int, first_block: int, block_ids: Sequence[int], *, stays: bool
    ) -> _Group | None:
        """Begin a frame; None when none is wanted."""
        layer_bytes = len(block_ids) * self._io.block_bytes
        room_bytes = min(max(1, self._group_bytes // layer_bytes), self._io.num_layers - layer) * layer_bytes
        segment = None
        if not (stays and self._is_shared(layer, block_ids)):
            segment = self._sender.take(transfer_id, room_bytes)
            if segment is None:
                return None
        digest = RowDigest() if segment is None else Digest()
        group = self._open[transfer_id] = _Group(segment, room_bytes, digest, layer, first_block, block_ids)
        return group

    def _is_shared(self, layer: int, block_ids: Sequence[int]) -> bool:
        return self._io.shared is not None and self._io.shared.has(layer, block_ids)

    def _continues(self, group: _Group, layer: int, first_block: int, block_ids: Sequence[int]) -> bool:
        """Whether these are the same blocks of the next layer, and may lie where the others do."""
        expected = (group.layer + group.num_layers, group.first_block, group.block_ids)
        return (layer, first_block, block_ids) == expected and (
            group.segment is not None or self._is_shared(layer, block_ids)
        )

    def _put(self, transfer_id: str) -> None:
        group = self._open.pop(transfer_id)
        segment, cached = group.segment, None
        if segment is None:
            cached = CachedBlocks(self._io, range(group.layer, group.layer + group.num_layers), group.block_ids)
        else:
            segment = replace(segment, view=segment.view[: group.num_bytes])
        place = {"layer": group.layer, "first_block": group.first_block, "num_blocks": len(group.block_ids)}
        seed, digest = transfer_seed(transfer_id), int(group.digest.intdigest())
        header = digested_header(seed, **place, size=group.num_bytes, digest=digest)
        self._sender.put(transfer_id, segment, **place, header=header, cached=cached)

    def _stage_faulty(
        self, transfer_id: str, layer: int, first_block: int, block_ids: Sequence[int], faults: SendFaults
    ) -> None:
        """Copy blocks of one layer into one frame, and do wrong what was asked for."""
        if faults.drops(layer):
            return
        segment = self._sender.take(transfer_id, len(block_ids) * self._io.block_bytes)
        if segment is None:
            return
        self._io.gather_into(layer, block_ids, segment.view)
        faults.spoil_blocks(segment.view)
        header = blocks_header(transfer_seed(transfer_id), layer, first_block, len(block_ids), segment.view)
        faults.spoil_frame(segment.view, layer)
        num_blocks = len(block_ids)
        self._sender.put(
            transfer_id, segment, layer=layer, first_block=first_block, num_blocks=num_blocks, header=header
        )
