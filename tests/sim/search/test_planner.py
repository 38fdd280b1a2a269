"""The search as a whole, over the stand-in of queue_model: verdict, budgets, honesty and properties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from core.latency.step import StepCost, Table
from sim.cluster import ClusterSpec, Mode
from sim.outcome import Outcome, Target
from sim.plan import Candidate, DeviceGroup, Plan, PlanQuestion, Verdict, is_clear
from sim.search.goodput import RESOLUTION, Scenario
from sim.search.placements import Placement
from sim.search.planner import search
from sim.search.referee import Referee
from sim.workload import Workload
from tests.sim.search.queue_model import group, question, queue_model, shape


def plan_of(asked: PlanQuestion) -> Plan:
    return search(asked, run=queue_model, recheck=None)


def without_time(plan: Plan) -> Plan:
    return replace(plan, stats=replace(plan.stats, elapsed_s=0.0))


def test_equal_questions_give_equal_plans() -> None:
    assert without_time(plan_of(question())) == without_time(plan_of(question()))


def test_the_best_is_the_best_of_both_families_and_on_the_front() -> None:
    plan = plan_of(question())
    assert plan.best is not None
    assert plan.best_one_pool is not None
    assert plan.best_disaggregated is not None
    assert plan.best in (plan.best_one_pool, plan.best_disaggregated)
    assert plan.ratio is not None
    assert plan.ratio.low <= plan.ratio.mid <= plan.ratio.high
    assert (plan.verdict is Verdict.UNCLEAR) is not is_clear(plan.ratio)
    assert plan.front[-1].goodput.mid >= plan.best.goodput.mid
    assert all(c.goodput.low <= c.goodput.mid <= c.goodput.high for c in plan.front)
    assert len({c.cluster for c in plan.front}) == len(plan.front)
    assert plan.stats.considered == plan.stats.pruned + plan.stats.simulated
    assert plan.stats.pruned > 0


def test_the_reported_goodput_is_kept_and_the_next_step_is_not() -> None:
    asked = question()
    best = plan_of(asked).best
    assert best is not None
    assert best.attainment[0].mid >= asked.targets[0].attainment
    for share, kept in ((1.0, True), (1.02, False)):
        outcomes = [
            queue_model(best.cluster, w.at_rate(best.goodput.mid * share), asked.targets)
            for w in (asked.workload, *(asked.workload.bootstrap(np.random.default_rng(s), 50) for s in (1, 2)))
        ]
        skip = int(0.05 * len(asked.workload))
        attained = float(np.mean([o.attainment(asked.targets, skip=skip)[0] for o in outcomes]))
        assert (attained >= asked.targets[0].attainment) is kept


# One step of the rates that are tried: near the promise they are kept and missed in turn, and either is found.
GRID = (1 + RESOLUTION) * (1 + 1e-9)


@settings(max_examples=3)
@given(st.integers(1, 4), st.floats(0.15, 1.5), st.floats(0.015, 0.08), st.integers(0, 5))
def test_more_devices_never_lower_the_reported_goodput(devices: int, ttft_s: float, tpot_s: float, seed: int) -> None:
    def goodput(count: int) -> float:
        asked = question(group(count), targets=(Target("chat", ttft_s, tpot_s),), count=60, seeds=(0, 1))
        asked = replace(asked, workload=asked.workload.bootstrap(np.random.default_rng(seed), 10))
        best = plan_of(asked).best
        return best.goodput.mid if best else 0.0

    assert goodput(devices + 1) >= goodput(devices) / GRID


@settings(max_examples=3)
@given(st.integers(8, 11), st.floats(0.2, 1.5), st.floats(0.02, 0.08), st.booleans())
def test_more_devices_never_lower_it_beyond_eight(devices: int, ttft_s: float, tpot_s: float, pairs: bool) -> None:
    shapes = (shape(2, speed=1.7, capacity=130_000),) if pairs else (shape(),)  # with pairs, odd devices stay idle

    def goodput(count: int) -> float:
        targets = (Target("chat", ttft_s, tpot_s),)
        best = plan_of(question(group(count, shapes=shapes), targets=targets, count=60, seeds=(0, 1))).best
        return best.goodput.mid if best else 0.0

    assert goodput(devices + 1) >= goodput(devices) / GRID


@settings(max_examples=3)
@given(st.integers(1, 3), st.integers(1, 3), st.floats(0.2, 1.0))
def test_the_order_of_groups_does_not_matter(fast: int, slow: int, ttft_s: float) -> None:
    first = group(fast, name="fast", price=3.0, shapes=(shape(speed=2.0),))
    second = group(slow, name="slow", price=1.0, shapes=(shape(),))

    def planned(*groups: DeviceGroup) -> Plan:
        return plan_of(question(*groups, targets=(Target("chat", ttft_s, 0.05),), count=60, seeds=(0, 1)))

    one, other = planned(first, second), planned(second, first)
    assert one.verdict is other.verdict
    assert one.best is not None
    assert other.best is not None
    assert one.best.goodput.mid == other.best.goodput.mid
    assert one.best.price_per_hour == other.best.price_per_hour


def test_the_family_that_loses_is_reported_even_when_it_keeps_nothing() -> None:
    def no_pairs(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
        outcome = queue_model(cluster, workload, targets, seed=seed)
        if cluster.prefill is not None:
            outcome.ttft_s[:] = 1e9
        return outcome

    plan = search(question(), run=no_pairs, recheck=None)
    assert plan.verdict is Verdict.ONE_POOL
    assert plan.best_disaggregated is not None
    assert plan.best_disaggregated.goodput.high == 0.0
    assert plan.best_disaggregated.attainment[0].mid == 0.0
    assert search(question(group(1, shapes=(shape(),))), run=no_pairs, recheck=None).best_disaggregated is None


def test_a_trace_too_short_to_queue_stops_at_what_the_devices_can_do() -> None:
    plan = plan_of(question(targets=(Target("chat", 1e4, 1e4),)))
    assert plan.best is not None
    assert np.isfinite(plan.best.goodput.high)
    assert any("give a longer trace" in note for note in plan.notes)


def test_the_best_is_checked_by_the_full_gear() -> None:
    asked: list[int] = []

    def recheck(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, skip: int = 0) -> float:
        asked.append(cluster.num_workers)
        return 0.013

    plan = search(question(), run=queue_model, recheck=recheck)
    assert plan.best is not None
    assert (plan.gears_differ, asked) == (0.013, [plan.best.cluster.num_workers])


def test_a_rate_is_carried_by_the_cheapest_placement() -> None:
    whole = plan_of(question(group(6))).best
    assert whole is not None
    asked = question(group(6), rate=whole.goodput.mid * 0.45)
    plan = plan_of(asked)
    assert plan.best is not None
    assert plan.best.goodput.mid >= asked.rate * 0.995
    assert plan.best.price_per_hour < whole.price_per_hour
    smaller = plan_of(question(group(int(plan.best.price_per_hour) - 1))).best
    assert smaller is None or smaller.goodput.mid < asked.rate


def test_a_rate_beyond_all_devices_is_infeasible_with_what_would_do() -> None:
    most = plan_of(question()).best
    assert most is not None
    plan = plan_of(question(rate=most.goodput.mid * 1.15))
    assert plan.verdict is Verdict.INFEASIBLE
    assert plan.shortfall is not None
    assert plan.shortfall.feasible_rate == pytest.approx(most.goodput.mid, rel=0.006)
    assert plan.shortfall.binding in ("chat.ttft_ms", "chat.tpot_ms")
    (nearest,) = plan.shortfall.nearest
    assert (nearest.ttft_s > 0.4) != (nearest.tpot_s > 0.04)  # one of the two is loosened
    loosened = plan_of(question(targets=(replace(nearest, ttft_s=nearest.ttft_s * 1.1, tpot_s=nearest.tpot_s * 1.1),)))
    assert loosened.best is not None
    assert loosened.best.goodput.mid >= most.goodput.mid * 1.1


def test_a_promise_that_an_idle_worker_breaks_names_the_target_that_binds() -> None:
    plan = plan_of(question(targets=(Target("chat", 0.4, 0.001),)))
    assert plan.verdict is Verdict.INFEASIBLE
    assert plan.shortfall is not None
    assert (plan.shortfall.binding, plan.shortfall.feasible_rate) == ("chat.tpot_ms", None)
    (nearest,) = plan.shortfall.nearest
    assert nearest.ttft_s == 0.4
    assert 0.001 < nearest.tpot_s < 0.03


def test_nothing_fits() -> None:
    plan = plan_of(question(group(shapes=(shape(capacity=10),))))
    assert (plan.verdict, plan.best) == (Verdict.INFEASIBLE, None)
    assert plan.shortfall is not None
    assert "longest prompt" in plan.shortfall.reason


def test_of_unlike_devices_the_cheaper_one_that_carries_the_rate_is_taken() -> None:
    fast = group(4, name="fast", price=4.0, shapes=(shape(speed=2.0),))
    slow = group(4, name="slow", price=1.0, shapes=(shape(),))
    alone = plan_of(question(slow)).best
    assert alone is not None
    plan = plan_of(question(fast, slow, rate=alone.goodput.mid * 0.7))
    assert plan.best is not None
    assert plan.best.price_per_hour <= 4.0


def test_what_if_judges_the_named_cluster_only() -> None:
    plan = plan_of(question())
    assert plan.best is not None
    asked = replace(question(), fixed=plan.best.cluster)
    judged = plan_of(asked)
    assert judged.best is not None
    assert judged.best.cluster == plan.best.cluster
    assert judged.stats.considered == 1
    assert judged.best.goodput.mid == pytest.approx(plan.best.goodput.mid, rel=0.011)
    too_many = replace(plan.best.cluster, decode=replace(plan.best.cluster.decode, replicas=9))
    with pytest.raises(ConfigError, match="what-if"):
        plan_of(replace(asked, fixed=too_many))


def test_progress_never_runs_back_and_ends_with_the_best() -> None:
    heard: list[tuple[int, int, Candidate | None]] = []

    def progress(*, done: int, total: int, best: Candidate | None) -> None:
        heard.append((done, total, best))

    plan = search(question(), progress=progress, run=queue_model, recheck=None)
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    assert all(done <= total for done, total, _ in heard)
    assert heard[-1][2] is not None
    assert plan.best_disaggregated is not None
    assert heard[-1][2].goodput.mid <= plan.best_disaggregated.goodput.mid


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (replace(question(), groups=()), "groups"),
        (replace(question(), targets=()), "targets"),
        (replace(question(), rate=0.0), "rate"),
        (replace(question(), workload=Workload("none", np.zeros(0), np.zeros(0, int), np.zeros(0, int))), "requests"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(broken: PlanQuestion, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        plan_of(broken)


def by_family(one_pool: float | None, apart: float | None) -> Referee:
    """Make a referee that sees these rates."""
    return lambda placement, scenario, hint: one_pool if placement.cluster.prefill is None else apart


def test_the_referee_decides_where_it_sees_a_clear_difference() -> None:
    for rates, verdict in (((1.0, 2.0), Verdict.DISAGGREGATE), ((2.0, 1.0), Verdict.ONE_POOL)):
        plan = search(question(), run=queue_model, recheck=None, referee=by_family(*rates))
        assert plan.verdict is verdict
        assert plan.best is (plan.best_one_pool if verdict is Verdict.ONE_POOL else plan.best_disaggregated)
        assert plan.own_policy == rates[::-1]


def test_a_referee_that_sees_no_difference_leaves_the_simpler_one() -> None:
    for apart in (1.04, 0.97):
        plan = search(question(), run=queue_model, recheck=None, referee=by_family(1.0, apart))
        assert plan.verdict is Verdict.UNCLEAR
        assert plan.best is plan.best_one_pool


def test_a_lead_that_an_unsure_profile_does_not_bear_out_is_no_clear_difference() -> None:
    rough = group(shapes=(replace(shape(), prefill_error=0.6, decode_error=0.6),))
    exact = group(shapes=(replace(shape(), prefill_error=0.0, decode_error=0.0),))
    for rates in ((1.0, 1.2), (1.08, 1.0)):
        known, doubtful = (
            search(question(devices), run=queue_model, recheck=None, referee=by_family(*rates))
            for devices in (exact, rough)
        )
        assert known.verdict is (Verdict.DISAGGREGATE if rates[1] > rates[0] else Verdict.ONE_POOL)
        assert doubtful.verdict is Verdict.UNCLEAR
        assert doubtful.ratio is not None
        assert doubtful.ratio.low < 1 < doubtful.ratio.high
        assert doubtful.best is (doubtful.best_disaggregated if rates[1] > rates[0] else doubtful.best_one_pool)


def test_a_referee_that_does_not_say_changes_nothing() -> None:
    plain, asked = (search(question(), run=queue_model, recheck=None, referee=r) for r in (None, by_family(None, 9.0)))
    assert (asked.verdict, asked.best, asked.notes) == (plain.verdict, plain.best, plain.notes)


def test_the_referee_cannot_choose_what_does_not_carry_the_rate() -> None:
    def half(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
        """Let prefill and decode apart keep half of what they would."""
        offered = workload if cluster.prefill is None else workload.at_rate(2 * workload.rate)
        return queue_model(cluster, offered, targets, seed=seed)

    most = search(question(), run=half, recheck=None).best_one_pool
    assert most is not None
    asked = replace(question(), rate=most.goodput.mid)
    plan = search(asked, run=half, recheck=None, referee=by_family(1.0, 9.0))
    assert plan.verdict is Verdict.ONE_POOL


def test_prefill_steps_are_those_that_the_routers_own_policy_keeps_more_with() -> None:
    def helped(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
        """Let prefill steps of few tokens help in the search."""
        small = cluster.prefill is not None and cluster.prefill.max_num_batched_tokens < 1000
        return queue_model(cluster, workload.at_rate(workload.rate * (0.8 if small else 1.0)), targets, seed=seed)

    def policy(small: float, whole: float) -> Referee:
        def rate(placement: Placement, scenario: Scenario, hint: float) -> float:
            prefill = placement.cluster.prefill
            return 1.0 if prefill is None else small if prefill.max_num_batched_tokens < 1000 else whole

        return rate

    for referee, expected in ((None, True), (policy(3.0, 2.0), True), (policy(2.0, 3.0), False)):
        found = search(question(), run=helped, recheck=None, referee=referee)
        assert found.best_disaggregated is not None
        assert found.best_disaggregated.cluster.prefill is not None
        assert (found.best_disaggregated.cluster.prefill.max_num_batched_tokens < 1000) is expected
        assert found.own_policy == (None if referee is None else (3.0, 1.0))


def test_prompts_that_would_reach_decode_together_are_prefilled_one_by_one() -> None:
    """Two sequences in a decode step break the promise, and prompts that share a prefill step end together."""
    cost = StepCost(
        Table.line(0.0, 1e-3), Table.constant(0.0), Table((1.0, 2.0), (0.02, 0.06)), Table.constant(0.0), 0.0
    )
    rng = np.random.default_rng(3)
    prompts, arrived_s = rng.integers(600, 1_401, 300), rng.exponential(1.0, 300).cumsum()
    asked = PlanQuestion(
        (group(2, shapes=(replace(shape(), cost=cost),)),),
        (Target("chat", 6.0, 0.03),),
        Workload("long prompts", arrived_s, prompts, np.full(300, 12)),
        modes=(Mode.DISAGGREGATED,),
        chunk_tokens=(256, 2048),
        seeds=(0,),
    )
    found = search(asked, recheck=None).best_disaggregated
    assert found is not None
    assert found.cluster.prefill is not None
    assert found.cluster.prefill.max_num_batched_tokens == 256
    whole = replace(found.cluster, prefill=replace(found.cluster.prefill, max_num_batched_tokens=8192))
    together = search(replace(asked, fixed=whole), recheck=None).best_disaggregated
    assert together is not None
    assert found.goodput.mid > 1.2 * together.goodput.mid
