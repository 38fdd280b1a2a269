"""The cache under torture sees late writers and wrong bytes."""

from __future__ import annotations

import random

from bench.torture.engine import BLOCKS, BlockPool

CHANCE = random.Random(1)


def test_what_is_filled_is_told_from_what_is_not() -> None:
    pool = BlockPool()
    blocks = pool.take(5, CHANCE)
    assert blocks is not None
    pool.fill(blocks, seed=9)
    assert pool.differs(blocks[2:], 9, first=2, of=5) == 0
    assert pool.differs(blocks, 10, first=0, of=5) == 5
    pool.cache["layer.3"][blocks[4]][7] ^= 1
    assert pool.differs(blocks, 9, first=0, of=5) == 1


def test_a_late_writer_is_seen_when_the_block_is_taken_again() -> None:
    pool = BlockPool()
    blocks = pool.take(BLOCKS, CHANCE)
    assert blocks is not None
    assert pool.take(1, CHANCE) is None
    pool.fill(blocks, seed=1)
    pool.give_back(blocks)
    assert pool.take(BLOCKS, CHANCE) is not None
    assert pool.spoiled == 0
    pool.give_back(blocks)
    pool.cache["layer.0"][blocks[3]][0] = 0
    assert pool.take(BLOCKS, CHANCE) is not None
    assert pool.spoiled == 1
