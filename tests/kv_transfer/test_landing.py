"""Which frames may land where: judged before a byte is written."""

from __future__ import annotations

import pytest
import torch

from core.errors import CorruptFrame
from kv_transfer.block_io import BlockIO
from kv_transfer.frames import Header, Kind
from kv_transfer.landing import Landed
from tests.support.kv_side import BLOCK_BYTES, BLOCKS, LAYERS, SHAPE


@pytest.fixture
def io() -> BlockIO:
    return BlockIO({f"layer.{i}": torch.zeros((BLOCKS, *SHAPE), dtype=torch.uint8) for i in range(LAYERS)})


def header(io: BlockIO, layer: int, first: int, count: int, *, size: int | None = None) -> Header:
    return Header(Kind.BLOCKS, layer, first, count, count * io.block_bytes if size is None else size, 0)


def test_blocks_are_complete_when_every_layer_has_landed(io: BlockIO) -> None:
    landed = Landed(io, (7, 8, 4), first_block=2)
    for layer in range(LAYERS):
        place = landed.place(header(io, layer, 2, 2))
        assert (place.layers, place.block_ids) == (range(layer, layer + 1), (7, 8))
        landed.add(place)
    assert landed.incomplete_blocks() == {4}
    with pytest.raises(CorruptFrame, match="1 blocks are incomplete"):
        landed.check_complete(LAYERS)
    for layer in range(LAYERS):
        landed.add(landed.place(header(io, layer, 4, 1)))
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
        (1, 2, 2, 4 * BLOCK_BYTES),
        (2, 4, 1, 2 * BLOCK_BYTES),
        (0, 4, 1, BLOCK_BYTES << 20),
        (0, 4, 1, 0),
    ],
    ids=["layer", "before", "after", "empty", "size", "far", "twice", "second twice", "layers", "huge", "no layer"],
)
def test_frame_that_fits_nowhere_is_refused(io: BlockIO, layer: int, first: int, count: int, size: int | None) -> None:
    landed = Landed(io, (7, 8, 4), first_block=2)
    landed.add(landed.place(header(io, 2, 2, 2)))
    with pytest.raises(CorruptFrame):
        landed.place(header(io, layer, first, count, size=size))


def test_frame_of_several_layers_lands_in_each(io: BlockIO) -> None:
    landed = Landed(io, (7, 8, 4), first_block=2)
    place = landed.place(header(io, 1, 3, 2, size=4 * io.block_bytes))
    assert (place.layers, place.block_ids) == (range(1, 3), (8, 4))
    landed.add(place)
    landed.add(landed.place(header(io, 0, 3, 2)))
    assert landed.incomplete_blocks() == {7}
