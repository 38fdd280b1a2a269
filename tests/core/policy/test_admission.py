"""What is held, refused and let go; times are those of tests.support.contexts.COST.

- A protected request is decided on as if no best-effort work were held.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy.context import ClassTarget, Tier
from core.policy.promise import LATE_S, TIER_S
from core.policy.registry import policy_named
from core.types import (
    ClusterView,
    Decision,
    HeldWork,
    Hold,
    Margins,
    Rejection,
    RequestShape,
    Role,
    Route,
    WorkerSpeed,
    WorkerView,
)
from tests.support.contexts import context
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE
CLASSES = {
    "gold": ClassTarget(0.5, 0.05, Tier.PROTECTED),
    "interactive": ClassTarget(0.5, 0.05),
    "spare": ClassTarget(20.0, 0.5, Tier.BEST_EFFORT),
}
NOTHING = HeldWork()
AS_CLAIMED = Margins(-1.0, 1.0, -1.0, 1.0, -1.0, 1.0)


def decide(
    *members: WorkerView,
    tokens: int = 1000,
    slo_class: str = "interactive",
    held: HeldWork = NOTHING,
    promised: HeldWork = NOTHING,
    now_s: float = 0.0,
    known: dict[str, Any] | None = None,
    **request: Any,
) -> Decision:
    settings: dict[str, Any] = {"may_hold": True, "admit_by_ttft": True, "admit_by_tpot": True, "targets": CLASSES}
    policy = policy_named("slo-aware", context(**settings | (known or {})))
    shape = RequestShape(request.pop("request_id", "r"), tokens, 16, slo_class, **request)
    return policy.decide(shape, ClusterView(members, held, promised), now_s)


def owing(tokens: int, name: str = "p0") -> WorkerView:
    return worker(name, P, requests=1, tokens=tokens, since_s=0.0)


def test_what_no_worker_has_room_for_is_held_while_it_can_be_in_time() -> None:
    # A worker is given work until it has a quarter of 500 ms before it; less a tenth, which is the protected classes'.
    assert isinstance(decide(owing(1000), worker("d0", D)), Route)
    held = decide(owing(2000), worker("d0", D))
    assert isinstance(held, Hold)
    assert held.key_s == pytest.approx(TIER_S + 0.5 - 0.110)  # behind the protected
    assert held.until_s == pytest.approx(0.210 - 0.9 * 0.125)
    assert held.forecast is not None
    assert held.forecast.ttft_s == pytest.approx(0.210 + 0.110 + 0.012)
    assert isinstance(decide(owing(2000), worker("d0", D), known={"may_hold": False}), Route)


def test_what_cannot_be_in_time_is_refused_with_figures() -> None:
    refused = decide(owing(4000), worker("d0", D))
    assert isinstance(refused, Rejection)
    assert refused.error == "overloaded"
    # It would wait for 410 ms; as much as a worker is given at once, 125 ms, may yet join the step it waits for.
    assert refused.reason == "TTFT 532 ms to 657 ms is the least predicted, the target is 500 ms"
    assert refused.earliest_s is not None
    assert 0.157 <= refused.earliest_s <= 2 * 0.157
    assert (refused.retry_after_s, refused.confidence) == (refused.earliest_s, 0.9)


def test_without_admission_what_is_late_is_held_behind_what_is_not() -> None:
    off = {"admit_by_ttft": False, "admit_by_tpot": False}
    late = decide(owing(9000), worker("d0", D), known=off, waited_s=0.45)
    assert isinstance(late, Hold)
    assert late.key_s > LATE_S / 2
    assert isinstance(decide(worker("p0", P), worker("d0", D), known=off, waited_s=9.0), Route)


def test_time_that_has_passed_is_gone() -> None:
    assert isinstance(decide(worker("p0", P), worker("d0", D), waited_s=0.3), Route)
    refused = decide(worker("p0", P), worker("d0", D), waited_s=0.4)
    assert isinstance(refused, Rejection)
    assert refused.reason == "TTFT 122 ms is the least predicted, 100 ms of the target of 500 ms are left"


def test_a_prompt_that_alone_takes_too_long_has_no_time() -> None:
    refused = decide(worker("p0", P), worker("d0", D), tokens=5000)
    assert isinstance(refused, Rejection)
    assert (refused.error, refused.earliest_s, refused.retry_after_s) == ("slo_infeasible", None, None)
    assert isinstance(decide(worker("p0", P), worker("d0", D), tokens=5000, ttft_s=0.6), Route)


def test_held_work_with_lesser_keys_is_waited_for() -> None:
    ahead = HeldWork((0.1, TIER_S + 0.2, TIER_S + 9.0), (0, 1000, 2000, 9000))
    held = decide(owing(1500), owing(1500, "p1"), worker("d0", D), tokens=500, held=ahead, ttft_s=0.6)
    assert isinstance(held, Hold)
    assert held.forecast is not None
    # 2000 tokens over two workers whose full batches take 0.1 ms for a token, and 10 ms for 4096 tokens.
    ahead_s = 1000 * (0.0001 + 0.010 / 4096)
    # And what is held behind it joins its step, up to what a worker is given: a quarter of 500 ms.
    assert held.forecast.queue_s == pytest.approx(0.160 + ahead_s + 0.125, rel=1e-6)
    no_more = HeldWork((0.1, 0.2), (0, 1000, 2000))
    first = decide(owing(1500), owing(1500, "p1"), worker("d0", D), held=no_more, ttft_s=0.6)
    assert isinstance(first, Hold)
    assert first.forecast is not None
    assert first.forecast.queue_s == pytest.approx(0.160 + ahead_s, rel=1e-6)


def test_what_goes_now_does_not_wait_for_what_is_held() -> None:
    held = HeldWork((TIER_S + 0.1,), (0, 500))  # 50 ms of it, which wait for room in a batch perhaps
    kept_back = decide(owing(1500), worker("d0", D), held=held)
    assert isinstance(kept_back, Hold)
    assert kept_back.forecast is not None
    assert kept_back.forecast.queue_s == pytest.approx(0.160 + 500 * (0.0001 + 0.010 / 4096), rel=1e-6)
    gone = decide(owing(1000), worker("d0", D), held=held)
    assert isinstance(gone, Route)
    assert gone.forecast is not None
    assert gone.forecast.queue_s == pytest.approx(0.110)


def test_who_has_more_time_than_the_tightest_class_gives_way_to_what_is_held() -> None:
    held = HeldWork((TIER_S + 0.1,), (0, 500))
    assert isinstance(decide(owing(1000), worker("d0", D), held=held), Route)
    behind = decide(owing(1000), worker("d0", D), held=held, ttft_s=0.6)
    assert isinstance(behind, Hold)
    assert behind.reason == "others are held before it"
    assert isinstance(decide(owing(1000), worker("d0", D), held=held, ttft_s=0.6, slo_class="gold"), Route)
    assert isinstance(decide(owing(1000), worker("d0", D), held=HeldWork((TIER_S + 0.6,), (0, 500)), ttft_s=0.6), Route)


def test_what_is_held_before_a_request_does_not_make_the_batch_look_emptier() -> None:
    """Whoever has time to wait must not find room in a batch where the urgent, who are held before it, find none."""
    batch = worker("d0", D, num_running=20, kv_blocks_used=10, kv_blocks_total=9000)
    held = HeldWork((TIER_S + 0.1,), (0, 9000))
    settings: dict[str, Any] = {"tpot_s": 0.036, "ttft_s": 10.0}
    alone = decide(worker("p0", P), batch, **settings)
    among = decide(worker("p0", P), batch, held=held, **settings)
    assert isinstance(alone, Hold)
    assert isinstance(among, Hold)
    assert alone.reason == among.reason == "the outputs in progress would be too slow"
    assert alone.forecast is not None
    assert among.forecast is not None
    assert among.forecast.tpot_s == pytest.approx(alone.forecast.tpot_s)


def test_outputs_in_progress_keep_their_target() -> None:
    tight = replace(worker("d0", D, num_running=4, kv_blocks_used=10, kv_blocks_total=900), tightest_tpot_s=0.016)
    held = decide(worker("p0", P), tight)
    assert isinstance(held, Rejection)
    assert held.reason == "TPOT 16 ms is the least predicted, the target is 16 ms, less a margin 14 ms"
    assert held.earliest_s is not None
    assert 0 < held.earliest_s < 128 * 0.016
    assert isinstance(decide(worker("p0", P), tight, slo_class="gold"), Route)


def test_outputs_that_are_slow_for_a_moment_are_waited_for() -> None:
    crowded = replace(worker("d0", D, num_running=20), tightest_tpot_s=0.0345)
    held = decide(worker("p0", P), crowded, ttft_s=2.0)
    assert isinstance(held, Hold)
    assert held.reason == "the outputs in progress would be too slow"


def test_an_output_that_no_worker_makes_so_fast_has_no_time() -> None:
    refused = decide(worker("p0", P), worker("d0", D), tpot_s=0.009)
    assert isinstance(refused, Rejection)
    assert (refused.error, refused.earliest_s) == ("slo_infeasible", None)


def test_best_effort_waits_instead_of_being_refused_until_its_own_target_is_gone() -> None:
    hopeless = [owing(90_000), worker("d0", D)]
    waiting = decide(*hopeless, slo_class="spare", waited_s=15.0)
    assert isinstance(waiting, Hold)
    assert waiting.key_s > TIER_S
    late = decide(*hopeless, slo_class="spare", waited_s=19.95)
    assert isinstance(late, Rejection)


def test_best_effort_takes_what_is_left() -> None:
    assert isinstance(decide(owing(800), worker("d0", D), slo_class="spare"), Route)
    assert isinstance(decide(owing(950), worker("d0", D), slo_class="spare"), Hold)
    assert isinstance(decide(owing(950), worker("d0", D)), Route)
    nearly_full = worker("d0", D, num_running=2, kv_blocks_used=80, kv_blocks_total=100)
    assert isinstance(decide(worker("p0", P), nearly_full, tokens=100, slo_class="spare"), Hold)
    assert isinstance(decide(worker("p0", P), nearly_full, tokens=100), Route)


def test_a_tenant_beyond_its_share_is_refused_first() -> None:
    busy = [owing(2300), worker("d0", D)]
    assert isinstance(decide(*busy), Hold)
    assert isinstance(decide(*busy, over_share_s=0.1), Rejection)


def test_promised_times_are_kept_free_and_kept() -> None:
    busy = [owing(1700), worker("d0", D)]
    due = HeldWork((0.2, 0.3), (0, 800, 1600))
    assert isinstance(decide(*busy), Hold)
    assert isinstance(decide(*busy, promised=due), Rejection)
    assert isinstance(decide(*busy, promised=due, slo_class="gold"), Hold)
    assert isinstance(decide(*busy, promised=due, is_reserved=True), Hold)
    assert isinstance(decide(*busy, promised=HeldWork((9.0,), (0, 9000))), Hold)
    late = [owing(9000), worker("d0", D)]
    assert isinstance(decide(*late, is_reserved=True), Hold)


def test_those_refused_later_are_told_later_times() -> None:
    def earliest(promised_tokens: int) -> float:
        refused = decide(owing(4000), worker("d0", D), promised=HeldWork((1.0,), (0, promised_tokens)))
        assert isinstance(refused, Rejection)
        return refused.earliest_s or 0.0

    # Each thousand tokens take half of the pool for 200 ms.
    assert earliest(3000) - earliest(2000) == pytest.approx(0.2, rel=0.03)


def test_times_are_spread_over_what_is_waited_for() -> None:
    times = set()
    for i in range(200):
        refused = decide(owing(6000), worker("d0", D), request_id=f"r{i}")
        assert isinstance(refused, Rejection)
        assert refused.earliest_s is not None
        times.add(refused.earliest_s)
    late_s = 0.620 + 0.122 + 0.125 - 0.5
    assert len(times) > 190
    assert late_s <= min(times) < 1.1 * late_s
    assert 1.9 * late_s < max(times) <= 2 * late_s


def test_only_what_is_uncertain_has_a_margin() -> None:
    # 480 ms alone: nothing is waited for. Of 340 ms beside 122 ms of its own, 125 ms more would be too late.
    assert isinstance(decide(worker("p0", P), worker("d0", D), tokens=4550), Route)
    assert isinstance(decide(owing(3300), worker("d0", D)), Rejection)
    assert isinstance(decide(owing(3300), worker("d0", D), slo_class="gold"), Rejection)  # for its own sake
    assert isinstance(decide(owing(2400), worker("d0", D), slo_class="gold"), Hold)
    assert isinstance(decide(owing(3300), worker("d0", D), is_reserved=True), Hold)
    known = {"may_hold": False}
    assert isinstance(decide(owing(2400), worker("d0", D), known=known), Route)
    wide = replace(owing(2400), speed=WorkerSpeed(prefill_spread=0.01))
    assert isinstance(decide(wide, worker("d0", D), known=known), Route)
    unsure = AS_CLAIMED._replace(waiting_high=8.0)
    assert isinstance(decide(wide, worker("d0", D), known=known, margins=unsure), Rejection)
    assert isinstance(decide(wide, worker("d0", D), known=known, margins=unsure, slo_class="gold"), Route)


def test_a_batch_grows_to_where_its_growth_leaves_a_margin() -> None:
    batch = worker("d0", D, num_running=4, kv_blocks_used=10, kv_blocks_total=900)
    alone = decide(worker("p0", P), worker("d0", D), tpot_s=0.0135)
    assert isinstance(alone, Route)  # 12 ms with no one beside it, of 12.15 ms
    assert isinstance(decide(worker("p0", P), batch, tpot_s=0.0182), Hold)  # 16.1 ms, and 0.9 of it are 16.4 ms
    assert isinstance(decide(worker("p0", P), batch, tpot_s=0.0200), Route)
    unsure = replace(batch, speed=WorkerSpeed(decode_spread=0.4))
    assert isinstance(decide(worker("p0", P), unsure, tpot_s=0.0200), Hold)
    wide = AS_CLAIMED._replace(tpot_high=8.0)
    assert isinstance(decide(worker("p0", P), batch, tpot_s=0.0200, margins=wide), Hold)
    assert isinstance(decide(worker("p0", P), unsure, tpot_s=0.0200, slo_class="gold"), Route)


def test_protected_classes_keep_each_others_targets_and_nobody_elses() -> None:
    classes = {
        "quick": ClassTarget(0.5, 0.030, Tier.PROTECTED),
        "gold": ClassTarget(0.5, 0.1, Tier.PROTECTED),
        "interactive": ClassTarget(0.5, 0.02),
    }
    known = {"targets": classes}

    def batch(tightest_tpot_s: float, running: int = 20) -> WorkerView:
        return replace(worker("d0", D, num_running=running), tightest_tpot_s=tightest_tpot_s)

    assert isinstance(decide(worker("p0", P), batch(0.1), slo_class="gold", known=known), Route)
    assert not isinstance(decide(worker("p0", P), batch(0.030), slo_class="gold", known=known), Route)
    few = decide(worker("p0", P), batch(0.02, running=12), slo_class="gold", known=known)
    assert isinstance(few, Route)  # 24 ms: too slow for the standard class alone


held_work = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5000)), max_size=5).map(sorted)


@given(
    owed=st.integers(0, 5000),
    spare=held_work,
    waited_s=st.floats(0, 0.6),
    tokens=st.integers(1, 6000),
)
def test_protected_is_not_hurt_by_best_effort(
    owed: int, spare: list[tuple[float, int]], waited_s: float, tokens: int
) -> None:
    members = (owing(owed) if owed else worker("p0", P), worker("d0", D))
    keys = tuple(key_s + 2 * TIER_S for key_s, _ in spare)
    sums = [0]
    for _, held_tokens in spare:
        sums.append(sums[-1] + held_tokens)
    alone = decide(*members, tokens=tokens, slo_class="gold", waited_s=waited_s)
    among = decide(*members, tokens=tokens, slo_class="gold", waited_s=waited_s, held=HeldWork(keys, tuple(sums)))
    assert among == alone
    if isinstance(alone, Hold):
        assert math.isfinite(alone.until_s)


def test_a_request_is_drawn_for_once_however_often_it_is_asked_about() -> None:
    """Without trust some are refused by chance; who was let in at first must not be refused for asking again."""
    policy = policy_named("slo-aware", context(admit_by_ttft=True))
    cluster = ClusterView((worker("p0", Role.PREFILL), worker("d0", Role.DECODE)))
    for number in range(50):
        asked = [
            RequestShape(f"r{number}", 100, None, "interactive", sequence=sequence, attainment=0.5)
            for sequence in range(20)
        ]
        assert len({isinstance(policy.decide(request, cluster, 0.0), Rejection) for request in asked}) == 1
