"""Decisions are carried out within limits, or only shown, and their outcome is told."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field, replace

import pytest

from cluster import scaling as scaling_module
from cluster.cluster_events import EventLog
from cluster.scaling import LOST, OPERATOR, Scaling
from core.config.models import BatonConfig, ScalingConfig
from core.control.actions import (
    ClassReport,
    Decider,
    Decision,
    DecisionOutcome,
    Observation,
    PoolSizes,
    RoleFlip,
    SizeLimits,
    Verdict,
)
from core.errors import ConfigError
from core.types import Role

SEEN = Observation(
    now_s=0.0,
    window_s=5.0,
    wanted=PoolSizes(1, 1),
    limits=SizeLimits(PoolSizes(1, 1), PoolSizes(3, 3), 4),
    workers=(),
    classes=(ClassReport("chat", 1.0, 0.1, 0.9, 10, 10, 7, 0),),
    samples=(),
    num_ended=10,
    num_held=0,
    held_tokens=0,
    least_slack_s=None,
    start_s=1.0,
    flip_s=1.0,
    is_changing=False,
)
MORE = Decision(PoolSizes(1, 2), "decode is full", figures=(("load", 0.9),))


@dataclass
class RecordedPools:
    """Takes what is wanted and keeps it."""

    wanted: list[PoolSizes | RoleFlip] = field(default_factory=list)
    refuses: str = ""
    is_changing: bool = False

    def want(self, sizes: PoolSizes) -> None:
        if self.refuses:
            raise ConfigError(self.refuses)
        self.wanted.append(sizes)

    def flip(self, change: RoleFlip, why: str) -> None:
        self.wanted.append(change)


class Fixed(Decider):
    """Decides what it was given, one after another, then nothing."""

    def __init__(self, *decisions: Decision | None) -> None:
        self._decisions = list(decisions)

    def decide(self, observation: Observation) -> Decision | None:
        return self._decisions.pop(0) if self._decisions else None


@pytest.fixture
def pools() -> RecordedPools:
    return RecordedPools()


async def decided(pools: RecordedPools, *decisions: Decision, mode: str = "auto", seen: Observation = SEEN) -> Scaling:
    """Run the loop until every decision was asked for."""
    decider = Fixed(*decisions)
    config = BatonConfig(scaling=ScalingConfig(mode=mode, interval_s=1))  # type: ignore[arg-type]
    made = Scaling(pools, EventLog(lambda: 0.0), make=lambda _: decider)
    for _ in range(len(decisions) + 1):
        made._measure(seen)
        if mode != "off":
            await made._decide(config, seen)
    return made


async def test_a_decision_is_carried_out_flips_first(pools: RecordedPools) -> None:
    flip = RoleFlip("prefill-1", Role.DECODE)
    made = await decided(pools, replace(MORE, flips=(flip,)))
    assert pools.wanted == [flip, PoolSizes(1, 2)]
    (kept,) = made.decisions
    assert (kept.by, kept.wanted, kept.reason, kept.figures) == (
        "decider",
        PoolSizes(1, 2),
        "decode is full",
        {"load": 0.9},
    )
    assert kept.flips == ("prefill-1 becomes decode",)


@pytest.mark.parametrize("sizes", [PoolSizes(0, 1), PoolSizes(1, 4), PoolSizes(3, 3)])
async def test_what_lies_outside_the_limits_is_refused(pools: RecordedPools, sizes: PoolSizes) -> None:
    made = await decided(pools, Decision(sizes, "why not"))
    assert pools.wanted == []
    assert made.decisions[0].outcome == "refused: outside the limits of `scaling` or of the cluster"


async def test_what_the_pools_refuse_is_told(pools: RecordedPools) -> None:
    pools.refuses = "it drains"
    made = await decided(pools, MORE)
    assert made.decisions[0].outcome == "refused: it drains"


async def test_advice_is_shown_once_and_not_carried_out(pools: RecordedPools) -> None:
    made = await decided(pools, MORE, replace(MORE, reason="still full"), mode="advise")
    assert pools.wanted == []
    assert [d.outcome for d in made.decisions] == ["advice: scaling.mode is advise"]


async def test_what_is_wanted_already_is_no_decision(pools: RecordedPools) -> None:
    assert (await decided(pools, Decision(PoolSizes(1, 1), "as it is"))).decisions == ()


async def test_the_outcome_is_told_once_enough_was_measured_after_it(
    pools: RecordedPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(scaling_module.time, "monotonic", lambda: clock[0])
    made = Scaling(pools, EventLog(lambda: 0.0), make=None)
    made._measure(SEEN)
    made.carry_out(OPERATOR, MORE)
    better = replace(SEEN, classes=(replace(SEEN.classes[0], num_kept=10),))
    pools.is_changing = True
    for clock[0] in (10.0, 20.0):
        made._measure(better)
    pools.is_changing = False
    for clock[0] in (25.0, 50.0, 85.0):
        assert made.decisions[0].outcome == ""
        made._measure(better)
    outcome = "done in 25.0 s; SLO kept by 70.0% of 10 before, SLO kept by 100.0% of 30 after"
    assert (made.decisions[0].outcome, made.decisions[0].took_s) == (outcome, 25.0)


class Failing(Decider):
    """Raises, against its contract."""

    def decide(self, observation: Observation) -> Decision | None:
        raise ZeroDivisionError("no traffic")


async def test_a_decider_that_fails_is_told_of_and_asked_again(pools: RecordedPools) -> None:
    log = EventLog(lambda: 0.0)
    made = Scaling(pools, log, make=lambda _: Failing())
    for _ in range(2):
        await made._decide(BatonConfig(), SEEN)
    assert [e.what for e in log.latest(9)] == ["the decider failed: ZeroDivisionError: no traffic"] * 2


async def test_a_decider_is_asked_by_one_thread_at_a_time(
    pools: RecordedPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_module, "DECIDE_S", 0.05)
    go_on, asked = threading.Event(), []

    class Slow(Decider):
        def decide(self, observation: Observation) -> Decision | None:
            asked.append(observation)
            assert go_on.wait(60)
            return None

    log = EventLog(lambda: 0.0)
    made = Scaling(pools, log, make=lambda _: Slow())
    for _ in range(3):
        await made._decide(BatonConfig(), SEEN)
    go_on.set()
    assert len(asked) == 1
    assert [e.what for e in log.latest(9)] == ["no decision within 0.05 s"]
    if made._asking is not None:
        await asyncio.wait([made._asking], timeout=60)


class Judging(Decider):
    """Decides once, and later says what came of it; before that it says what it waits for."""

    def __init__(self, decision: Decision) -> None:
        self._decision, self.asked = decision, 0

    @property
    def waits_for(self) -> str:
        return "costs" if self.asked < 2 else ""

    def decide(self, observation: Observation) -> Decision | None:
        self.asked += 1
        return self._decision if self.asked == 2 else None

    def take_outcomes(self) -> tuple[DecisionOutcome, ...]:
        if self.asked < 3:
            return ()
        return (DecisionOutcome(self._decision, 0.0, 9.0, Verdict.BETTER, 0.7, 0.95),)


async def test_what_a_decider_waits_for_and_how_it_judges_its_decisions_are_events(pools: RecordedPools) -> None:
    log, told = EventLog(lambda: 0.0), []
    config = BatonConfig(scaling=ScalingConfig(mode="auto"))
    decider = Judging(MORE)
    made = Scaling(pools, log, make=lambda _: decider, told=lambda: told.append(made.decisions))
    await made._decide(config, SEEN)
    assert made.state(config) == "auto; no decision yet: costs"
    await made._decide(config, SEEN)
    assert made.state(config) == "auto"
    await made._decide(config, SEEN)
    assert [event.what for event in log.latest(9)] == [
        "costs",
        "all that a decision needs is known",
        "decider: 1 prefill, 2 decode; decode is full",
        "decision 1: better, attainment 70.0% -> 95.0%",
    ]
    assert [decisions[0].verdict for decisions in told] == ["", "better"]


async def test_the_outcome_of_what_was_refused_is_no_event(pools: RecordedPools) -> None:
    pools.refuses = "it drains"
    decider = Judging(MORE)
    made = Scaling(pools, EventLog(lambda: 0.0), make=lambda _: decider)
    for _ in range(3):
        await made._decide(BatonConfig(scaling=ScalingConfig(mode="auto")), SEEN)
    assert [(d.outcome, d.verdict) for d in made.decisions] == [("refused: it drains", "")]


async def test_an_order_is_done_once_the_pools_change_no_more_and_measured_only_where_scaling_is_on(
    pools: RecordedPools,
) -> None:
    made = Scaling(pools, EventLog(lambda: 0.0), make=None)
    pools.is_changing = True
    made.follow(OPERATOR, MORE)
    made.look()
    assert made.decisions[0].took_s is None
    pools.is_changing = False
    made.look()
    assert made.decisions[0].took_s is not None
    made._close_unmeasured()
    assert made.decisions[0].outcome.startswith("done in ")
    assert "before" not in made.decisions[0].outcome


async def test_nothing_is_observed_while_scaling_is_off_and_a_change_is_seen_at_once(pools: RecordedPools) -> None:
    config = BatonConfig(scaling=ScalingConfig(mode="off", interval_s=1))
    observed = asyncio.Event()

    async def observe() -> Observation | None:
        observed.set()
        return None

    made = Scaling(pools, EventLog(lambda: 0.0), make=None)
    made._close_unmeasured = closed = Closed()  # type: ignore[method-assign]
    running = asyncio.create_task(made.run(lambda: config, observe))
    async with asyncio.timeout(60):
        await closed.twice.wait()
        assert not observed.is_set()
        config = BatonConfig(scaling=ScalingConfig(mode="auto", interval_s=1))
        made.forget_decider()
        await observed.wait()
    running.cancel()
    await asyncio.wait([running])


class Closed:
    """Counts how often the loop came by."""

    def __init__(self) -> None:
        self.count, self.twice = 0, asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        if self.count == 2:
            self.twice.set()


async def test_decisions_of_an_earlier_life_are_kept_and_counted_on(pools: RecordedPools) -> None:
    before = await decided(pools, MORE)
    made = Scaling(pools, EventLog(lambda: 0.0), make=None)
    made.restore(before.decisions)
    assert made.note(OPERATOR, MORE) == 2
    assert [(d.number, d.outcome) for d in made.decisions] == [(1, LOST), (2, "")]
