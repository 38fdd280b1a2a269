"""Which frames may land where: judged before a byte is written."""

from __future__ import annotations

import pytest
import torch

from core.errors import CorruptFrame
from kv_transfer.block_io import BlockIO
from kv_transfer.frames import Header, Kind
from kv_transfer.landing import Landed
from tests.support.kv_side import BLOCKS, LAYERS, SHAPE


@pytest.fixture
def io() -> BlockIO:
    return BlockIO({f"layer.{i}": torch.zeros((BLOCKS, *SHAPE), dtype=torch.uint8) for i in range(LAYERS)})


def header(io: BlockIO, layer: int, first: int, count: int, *, size: int | None = None) -> Header:
    return Header(Kind.BLOCKS, layer, first, count, count * io.block_bytes if size is None else size, 0)


def test_blocks_are_complete_when_every_layer_has_landed(io: BlockIO) -> None:
    landed = Landed(io, (7, 8, 4), first_block=2)
    for layer in range(LAYERS):
        assert landed.place(header(io, layer, 2, 2)) == (7, 8)
        landed.add(header(io, layer, 2, 2))
    assert landed.incomplete_blocks() == {4}
    with pytest.raises(CorruptFrame, match="1 blocks are incomplete"):
        landed.check_complete(LAYERS)
    for layer in range(LAYERS):
        landed.add(header(io, layer, 4, 1))
    landed.check_complete(2 * LAYERS)
    with pytest.raises(CorruptFrame, match="frames came"):
        landed.check_complete(2 * LAYERS + 1)


@pytest.mark.parametrize(
    ("layer", "first", "count", "size"),
    [
        (LAYERS, 2, 1, None),
        (0, 1, 1, None),
        (0, 4, 2, None),
        (0, 2, 0, None),
        (0, 2, 1, 3),
        (1, 1 << 31, 1, None),
        (2, 3, 1, None),
    ],
    ids=["layer", "before", "after", "empty", "size", "far", "twice"],
)
def test_frame_that_fits_nowhere_is_refused(io: BlockIO, layer: int, first: int, count: int, size: int | None) -> None:
    landed = Landed(io, (7, 8, 4), first_block=2)
    landed.add(header(io, 2, 2, 2))
    with pytest.raises(CorruptFrame):
        landed.place(header(io, layer, first, count, size=size))
