"""The engine thread's copying: blocks of one layer after the other out of the cache, into frames.

Owns how a prompt is divided into frames: a layer of a long one into several, several layers of a short one into one.
Each frame costs some Python on both sides, whatever is in it. Must not know streams or what becomes of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Protocol

from kv_transfer.block_io import BlockIO
from kv_transfer.faults import SendFaults
from kv_transfer.frames import Digest, blocks_header, transfer_seed
from kv_transfer.staging import Segment

FRAME_BYTES: Final = 2 << 20  # the most blocks of one layer in a frame
GROUP_BYTES: Final = 2 << 20  # layers of a short prompt wait for the next up to this size, none beyond the step


class Frames(Protocol):
    """What frames are handed to; kv_transfer.sender says what each call does."""

    def take(self, transfer_id: str, size: int) -> Segment | None:
        """Take memory for one frame; None when it is not wanted."""
        ...

    def put(
        self, transfer_id: str, segment: Segment, *, layer: int, first_block: int, num_blocks: int, header: bytes
    ) -> None:
        """Hand a filled segment over."""
        ...


@dataclass(slots=True)
class _Group:
    """A frame that the next layers may still go into."""

    segment: Segment  # room for all layers that fit
    digest: Digest
    layer: int
    first_block: int
    num_blocks: int
    num_layers: int = 0  # that are in it
    num_bytes: int = 0  # of those


class Stager:
    """Copies blocks for all hand-overs of one engine rank; called from the engine thread only."""

    def __init__(self, io: BlockIO, sender: Frames, group_bytes: int = GROUP_BYTES) -> None:
        """Put as many layers into one frame as `group_bytes` hold; 0: each into its own."""
        self._io = io
        self._sender = sender
        self._group_bytes = group_bytes
        self._open: dict[str, _Group] = {}  # all and only frames with room for a layer more, by transfer id

    def stage(
        self, transfer_id: str, layer: int, first_block: int, block_ids: Sequence[int], faults: SendFaults | None = None
    ) -> None:
        """Copy blocks of one layer; they are the caller's again on return. They leave with `flush` at the latest."""
        if faults is not None:
            self._stage_faulty(transfer_id, layer, first_block, block_ids, faults)
            return
        for start, end in self._frames_of(len(block_ids)):
            self._add(transfer_id, layer, first_block + start, block_ids[start:end])

    def flush(self) -> None:
        """Hand over every frame that still has room; at the end of each step, so that none waits for a later one."""
        for transfer_id in list(self._open):
            self._put(transfer_id)

    def _frames_of(self, num_blocks: int) -> Iterator[tuple[int, int]]:
        """Divide blocks of a layer evenly: (first, end)."""
        count = max(1, -(-num_blocks * self._io.block_bytes // FRAME_BYTES))
        return pairwise(num_blocks * index // count for index in range(count + 1))

    def _add(self, transfer_id: str, layer: int, first_block: int, block_ids: Sequence[int]) -> None:
        group = self._open.get(transfer_id)
        if group is not None and not _continues(group, layer, first_block, len(block_ids)):
            self._put(transfer_id)
            group = None
        layer_bytes = len(block_ids) * self._io.block_bytes
        if group is None:
            num_layers = min(max(1, self._group_bytes // layer_bytes), self._io.num_layers - layer)
            segment = self._sender.take(transfer_id, num_layers * layer_bytes)
            if segment is None:
                return
            group = self._open[transfer_id] = _Group(segment, Digest(), layer, first_block, len(block_ids))
        view = group.segment.view[group.num_bytes : group.num_bytes + layer_bytes]
        self._io.gather_into(layer, block_ids, view, group.digest)
        group.num_layers += 1
        group.num_bytes += layer_bytes
        if group.num_bytes == group.segment.view.nbytes:
            self._put(transfer_id)

    def _put(self, transfer_id: str) -> None:
        group = self._open.pop(transfer_id)
        segment = replace(group.segment, view=group.segment.view[: group.num_bytes])
        place = {"layer": group.layer, "first_block": group.first_block, "num_blocks": group.num_blocks}
        seed, digest = transfer_seed(transfer_id), int(group.digest.intdigest())
        header = blocks_header(seed, **place, payload=segment.view, digest=digest)
        self._sender.put(transfer_id, segment, **place, header=header)

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


def _continues(group: _Group, layer: int, first_block: int, num_blocks: int) -> bool:
    """Whether these are the same blocks of the next layer."""
    expected = (group.layer + group.num_layers, group.first_block, group.num_blocks)
    return (layer, first_block, num_blocks) == expected
