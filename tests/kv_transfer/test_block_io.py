"""Blocks come out of one cache and land in another, whatever their order; the rest of the cache stays as it is."""

from __future__ import annotations

import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.block_io import BlockIO
from kv_transfer.frames import Digest
from tests.support.kv_side import BLOCKS, LAYERS, SHAPE

IDS = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS, unique=True)


@given(IDS, st.data())
def test_blocks_land_where_they_should(source: list[int], data: st.DataObject) -> None:
    target = data.draw(st.permutations(range(BLOCKS)))[: len(source)]
    caches = [
        {f"layer.{i}": torch.randint(0, 255, (BLOCKS, *SHAPE), dtype=torch.uint8) for i in range(LAYERS)}
        for _ in range(2)
    ]
    before = caches[1]["layer.1"].clone()
    out, into = (BlockIO(cache) for cache in caches)
    staged = memoryview(bytearray(len(source) * out.block_bytes))
    digest = Digest()
    out.gather_into(1, source, staged, digest)
    assert digest.intdigest() == xxhash.xxh3_64_intdigest(staged)
    rows = into.writable(1, target)
    assert sum(row.nbytes for row in rows) == staged.nbytes
    left = staged
    for row in rows:
        row[:], left = left[: row.nbytes], left[row.nbytes :]
    into.commit(1, target, rows)
    assert torch.equal(caches[0]["layer.1"][source], caches[1]["layer.1"][target])
    others = [index for index in range(BLOCKS) if index not in target]
    assert torch.equal(before[others], caches[1]["layer.1"][others])


def test_neighbours_are_one_row() -> None:
    io = BlockIO({"a": torch.zeros((BLOCKS, *SHAPE), dtype=torch.uint8)})
    assert [row.nbytes // io.block_bytes for row in io.writable(0, [3, 4, 5, 9, 8, 1])] == [3, 1, 1, 1]
