from __future__ import annotations

import pytest

from bench.kv.pair import PairFailed, open_pair
from bench.kv.systems import LIMITS, OURS, System


@pytest.mark.parametrize("system", LIMITS, ids=lambda system: system.options["limit"])
def test_a_pair_is_timed_move_by_move(system: System) -> None:
    with open_pair(system, 32) as pair:
        taken = pair.take(32, 2, repeats=3)
    assert (taken.system, taken.tokens, taken.round) == (system.name, 32, 2)
    assert taken.num_bytes == 2 * 32 * 65536
    assert len(taken.seconds) == 3
    assert min(taken.seconds) > 0
    assert taken.cpu_s_per_gb > 0
    assert taken.gb_per_s == pytest.approx(taken.num_bytes / sorted(taken.seconds)[1] / 1e9)


def test_a_side_that_ends_is_named_with_its_last_words() -> None:
    system = System("broken", OURS, "bench.kv.no_such_module")
    with pytest.raises(PairFailed, match=r"broken: the sender gave no answer.*no_such_module"), open_pair(system, 16):
        pass


def test_blocks_that_did_not_arrive_are_no_measurement() -> None:
    with (
        open_pair(System("idle", OURS, "tests.support.kv_idle"), 16) as pair,
        pytest.raises(PairFailed, match="32 blocks of 16 tokens arrived wrong"),
    ):
        pair.take(16, 0, repeats=1)
