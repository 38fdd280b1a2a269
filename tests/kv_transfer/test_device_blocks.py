"""Blocks that stay on their device.

Invariants: a gathered buffer lands where it is wanted and nowhere else; one whose bytes or place are wrong lands
nowhere; what is left of a buffer without its first blocks is as if it had been gathered so.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CorruptFrame
from kv_transfer.device_blocks import SUM_BYTES, DeviceBlocks, place_sum

BLOCKS = 6
ORDERS = st.permutations(range(BLOCKS))
COUNTS = st.integers(1, BLOCKS)
SIZES = st.sampled_from((1, 8, 13, 64, 4096))


def caches(block_bytes: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(block_bytes)
    source = torch.randint(0, 256, (BLOCKS, block_bytes), generator=generator).to(torch.uint8)
    return [source], [torch.zeros_like(source)]


@settings(max_examples=40, deadline=None)
@given(ORDERS, COUNTS, SIZES)
def test_blocks_land_where_they_are_wanted_and_nowhere_else(order: list[int], count: int, block_bytes: int) -> None:
    source, target = caches(block_bytes)
    sources, targets = order[:count], order[::-1][:count]
    buffer = DeviceBlocks(source).gather(0, sources, 99)
    assert buffer.tensor.numel() == count * block_bytes + SUM_BYTES
    DeviceBlocks(target).scatter(0, targets, 99, buffer.tensor)
    expected = torch.zeros_like(source[0])
    expected[targets] = source[0][sources]
    assert torch.equal(target[0], expected)


@settings(max_examples=40, deadline=None)
@given(ORDERS, SIZES, st.integers(0, (1 << 64) - 1), st.data())
def test_a_flipped_bit_or_another_place_lands_nowhere(
    order: list[int], block_bytes: int, place: int, data: st.DataObject
) -> None:
    source, target = caches(block_bytes)
    tensor = DeviceBlocks(source).gather(0, order, place).tensor
    landing = DeviceBlocks(target)
    with pytest.raises(CorruptFrame):
        landing.scatter(0, order, place ^ data.draw(st.integers(1, (1 << 64) - 1)), tensor)
    tensor[data.draw(st.integers(0, tensor.numel() - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptFrame):
        landing.scatter(0, order, place, tensor)
    assert not target[0].any()


@settings(max_examples=40, deadline=None)
@given(ORDERS, st.integers(1, BLOCKS - 1), SIZES)
def test_without_its_first_blocks_it_is_as_if_gathered_so(order: list[int], skipped: int, block_bytes: int) -> None:
    blocks = DeviceBlocks(caches(block_bytes)[0])
    rest = blocks.gather(0, order, 1).without_first(skipped * block_bytes, 2)
    assert torch.equal(rest.tensor, blocks.gather(0, order[skipped:], 2).tensor)


@pytest.mark.parametrize("block_bytes", [1, 13, 64])
def test_the_host_gets_the_payload_alone(block_bytes: int) -> None:
    source, _ = caches(block_bytes)
    buffer = DeviceBlocks(source).gather(0, [3, 1], 7)
    host = memoryview(bytearray(2 * block_bytes))
    buffer.copy_to_host(host)
    assert bytes(host) == source[0][[3, 1]].numpy().tobytes()


def test_blocks_that_change_places_change_the_sum() -> None:
    first, second = torch.arange(64, dtype=torch.uint8), torch.arange(64, 128, dtype=torch.uint8)
    assert place_sum(torch.cat((first, second)), 0) != place_sum(torch.cat((second, first)), 0)
