"""The prefix index believes what was recorded, no more, within its bounds.

Properties, over any run of joins, records, corrections and departures:
- without pressure, a lookup tells of each worker exactly the longest beginning it was given;
- under pressure, it never tells of more than that, and of no worker that has left or restarted;
- what is counted of a worker is what its pieces carry, within its cache; every piece that carries a worker's bit is in
  its log; no bucket is over-full.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.prefix_index import _WAYS, PIECE_ENDS, PIECE_SIZES, PrefixIndex

MB = 1 << 20
WORKERS = ("w-0", "w-1", "w-2")


def chain(*branches: int) -> tuple[int, ...]:
    """The pieces of a prompt that takes these turns: equal beginnings give equal pieces."""
    pieces, state = [], 0
    for branch in branches:
        state = random.Random(state * 31 + branch + 1).getrandbits(64)
        pieces.append(state)
    return tuple(pieces)


def of_workers(index: PrefixIndex, **worker: int) -> PrefixIndex:
    for name in WORKERS:
        index.join(name, **({"epoch": 1, "num_kv_blocks": 1_000_000, "block_size": 16} | worker))
    return index


def validate(index: PrefixIndex) -> None:
    """Assert what holds between calls."""
    counted = dict.fromkeys(index._by_held, 0)
    logs = {held: set(worker.log[worker.head :]) for held, worker in index._by_held.items()}
    for bucket in index._buckets:
        assert len(bucket) <= _WAYS
        for piece, value in bucket.items():
            assert value & index._all_held
            for held in index._by_held:
                if value & held:
                    counted[held] += PIECE_SIZES[value >> 1 & 3][0]
                    assert piece in logs[held]
    for held, worker in index._by_held.items():
        assert worker.num_tokens == counted[held]
        if worker.worker_id in index._workers:
            assert worker.num_tokens <= max(0, worker.max_tokens * 256 / index._ratio)


@dataclass
class Model:
    """What each worker was given since it joined."""

    given: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in WORKERS})

    def lookup(self, pieces: tuple[int, ...]) -> dict[str, int]:
        found = {}
        for name, known in self.given.items():
            depth = next((i for i, piece in enumerate(pieces) if piece not in known), len(pieces))
            if depth:
                found[name] = PIECE_ENDS[depth - 1]
        return found


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=30).map(lambda branches: chain(*branches))
steps = st.lists(
    st.tuples(st.sampled_from(("record", "record", "record", "lookup", "restart")), st.sampled_from(WORKERS), prompts),
    max_size=60,
)


def drive(index: PrefixIndex, script: list[tuple[str, str, tuple[int, ...]]], *, exact: bool) -> None:
    model, epoch = Model(), 1
    for action, worker_id, pieces in script:
        if action == "record":
            index.record(worker_id, pieces)
            model.given[worker_id] |= set(pieces)
        elif action == "restart":
            epoch += 1
            index.join(worker_id, epoch=epoch, num_kv_blocks=1000, block_size=16)
            model.given[worker_id] = set()
        expected, found = model.lookup(pieces), index.lookup(pieces)
        assert [name for name, _ in found] == sorted(name for name, _ in found)
        if exact:
            assert dict(found) == expected
        else:
            assert all(tokens <= expected.get(name, 0) for name, tokens in found)
        validate(index)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_without_pressure_it_knows_the_longest_beginning_of_each_worker(
    script: list[tuple[str, str, tuple[int, ...]]],
) -> None:
    drive(of_workers(PrefixIndex(4 * MB), num_kv_blocks=1000), script, exact=True)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(1, 200))
def test_under_pressure_it_never_believes_more_than_was_recorded(
    script: list[tuple[str, str, tuple[int, ...]]], num_kv_blocks: int
) -> None:
    drive(of_workers(PrefixIndex(MB // 16), num_kv_blocks=num_kv_blocks), script, exact=False)


def test_belief_stays_within_the_cache_and_prefers_what_is_used() -> None:
    index = of_workers(PrefixIndex(4 * MB), num_kv_blocks=256)  # 4096 tokens
    shared = chain(0, 0, 0)
    for number in range(100):
        index.record("w-0", shared)
        index.record("w-0", chain(100 + number, 1, 2, 3))
        assert index.believed_tokens("w-0") <= 4096
        validate(index)
    assert dict(index.lookup(shared)) == {"w-0": 192}
    assert dict(index.lookup(chain(199, 1, 2, 3))) == {"w-0": 256}
    assert index.lookup(chain(100, 1, 2, 3)) == ()


def test_workers_part_where_their_prompts_do() -> None:
    index = of_workers(PrefixIndex(MB))
    index.record("w-2", chain(1, 2, 3, 4))
    index.record("w-0", chain(1, 2, 7))
    index.record("w-1", chain(1))
    assert index.lookup(chain(1, 2, 3, 9)) == (("w-0", 128), ("w-1", 64), ("w-2", 192))
    assert index.lookup(chain(5)) == ()
    assert index.lookup(()) == ()


def test_hits_are_whole_blocks() -> None:
    index = of_workers(PrefixIndex(MB), block_size=256)
    index.record("w-0", chain(1, 2, 3, 4, 5))
    assert index.lookup(chain(1, 2, 3, 4, 5)) == (("w-0", 256),)


def test_positions_of_workers_that_left_are_used_again() -> None:
    index = PrefixIndex(MB, max_workers=2)
    for number in range(50):
        name = f"w-{number}"
        index.join(name, epoch=1, num_kv_blocks=1000, block_size=16)
        assert index.lookup(chain(1, 2)) == ()
        index.record(name, chain(1, 2))
        for branch in range(40):
            index.record(name, chain(number, branch, 3))
        assert index.lookup(chain(1, 2)) == ((name, 128),)
        index.forget(name)
        validate(index)
    assert index.lookup(chain(1, 2)) == ()


def test_workers_beyond_the_limit_are_not_told_of() -> None:
    index = PrefixIndex(MB, max_workers=1)
    for name in ("w-0", "w-1"):
        index.join(name, epoch=1, num_kv_blocks=1000, block_size=16)
        index.record(name, chain(1))
    assert index.lookup(chain(1)) == (("w-0", 64),)


def test_an_index_without_memory_knows_nothing() -> None:
    index = of_workers(PrefixIndex(0))
    index.record("w-0", chain(1))
    index.correct("w-0", chain(1), prompt_tokens=64, cached_tokens=64, believed_tokens=0, num_bytes=256)
    index.forget("w-0")
    assert index.lookup(chain(1)) == ()


def report(index: PrefixIndex, pieces: tuple[int, ...], *, cached: int, believed: int, tokens: int = 0) -> None:
    nominal = PIECE_ENDS[len(pieces) - 1]
    index.correct(
        "w-0",
        pieces,
        prompt_tokens=tokens or nominal,
        cached_tokens=cached,
        believed_tokens=believed,
        num_bytes=4 * nominal,
    )


def test_tokens_are_those_that_workers_count() -> None:
    index = of_workers(PrefixIndex(MB))
    index.record("w-0", chain(1, 2, 3, 4))
    report(index, chain(1, 2, 3, 4), cached=0, believed=0, tokens=512)  # twice as many as their bytes suggest
    assert index.lookup(chain(1, 2, 8)) == (("w-0", 256),)


def test_a_worker_that_had_less_loses_its_oldest_beliefs() -> None:
    index = of_workers(PrefixIndex(MB))
    for number in range(64):
        index.record("w-0", chain(number, 1))
    for number in range(64):
        if number != 20:
            index.record("w-1", chain(number, 1))
    index.record("w-0", chain(20, 1))  # used since
    report(index, chain(63, 1), cached=0, believed=128)
    report(index, chain(62, 1), cached=16, believed=128)
    held = [number for number in range(64) if "w-0" in dict(index.lookup(chain(number, 1)))]
    assert held == list(range(2, 64))
    assert all("w-1" in dict(index.lookup(chain(number, 1))) for number in (0, 1))
    validate(index)


def test_a_worker_without_a_prefix_cache_is_not_told_of_until_it_reports_hits() -> None:
    index = of_workers(PrefixIndex(MB))
    for number in range(40):
        index.record("w-0", chain(number))
        believed = dict(index.lookup(chain(number))).get("w-0", 0)
        report(index, chain(number), cached=0, believed=believed)
    assert index.lookup(chain(39)) == ()
    for number in range(40):
        index.record("w-0", chain(number))
        report(index, chain(number), cached=64, believed=dict(index.lookup(chain(number))).get("w-0", 0))
    assert index.lookup(chain(39)) == (("w-0", 64),)


def test_a_report_of_nothing_changes_nothing() -> None:
    index = of_workers(PrefixIndex(MB))
    index.record("w-0", chain(1, 2))
    for _ in range(50):
        index.correct("w-0", chain(1, 2), prompt_tokens=0, cached_tokens=0, believed_tokens=128, num_bytes=512)
        index.correct("w-9", chain(1, 2), prompt_tokens=128, cached_tokens=0, believed_tokens=128, num_bytes=512)
    assert index.lookup(chain(1, 2)) == (("w-0", 128),)


@pytest.mark.parametrize("num_workers", [2, 100])
def test_memory_is_what_it_was_given(num_workers: int) -> None:
    rng = random.Random(1)
    gc.collect()
    tracemalloc.start()
    try:
        index = PrefixIndex(MB)
        for number in range(num_workers):
            index.join(f"w-{number}", epoch=1, num_kv_blocks=100_000, block_size=16)
        for number in range(4_000):
            index.record(f"w-{number % num_workers}", tuple(rng.getrandbits(64) for _ in range(10)))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.6 * MB < used < 1.1 * MB  # workers and free positions come on top
    assert index.num_pieces > 3_000
