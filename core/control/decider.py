"""The controller's decider: both pools' sizes for the next ten minutes, from what was measured and is forecast.

Owns when to act: at once when the pools are too small or split wrongly, late when they are too large, not again within
the cool-down, back when a flip made things worse. How large they should be is core.control.sizing. A stateful
accountant, pure towards its caller: equal observations, equal decisions. Must not know who measures or acts.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from core.control.actions import Decision, DecisionOutcome, Observation, PoolSizes, RoleFlip, Verdict
from core.control.arrivals import ArrivalForecast
from core.control.capacity import Capacities, ServiceModel, capacities
from core.control.checks import AtOnce, Checks, SplitCheck
from core.control.demand import Demand, LengthMemory
from core.control.flips import READY, flips_between
from core.control.history import FlipHistory, NeedHistory, other
from core.control.judging import Attainment, Judge
from core.control.pressure import Pressure
from core.control.sizing import Bounds, Evaluator, best_split, needed, total
from core.types import Role

_MOST_ESTIMATED: Final = 1024  # workers: limits by configuration go to thousands, whatever there is room for


@dataclass(frozen=True, slots=True)
class Settings:
    """How the decider behaves; times in seconds."""

    most_workers: int | None = None  # of both pools; None: as the limits say
    least_workers: int = 0
    down_after_s: float = 300.0  # fewer workers must have been enough for so long
    flip_after_s: float = 10.0  # a worker must have been one too many for so long to be flipped
    cool_down_s: float = 60.0  # a flip is not taken back within
    barred_s: float = 300.0  # nor made again within, when it made things worse
    clear_fall: float = 0.15  # of attainment: so much takes a flip back whatever the estimate says
    settle_s: float = 15.0  # after a change, measurements are of its warm-up
    judge_s: float = 60.0  # a decision is judged by what ended in so long
    idle_s: float = 120.0  # without a request for so long, the pools go to their floor
    gain: float = 1.05  # a split must carry so much more to be worth flips when neither carries all
    deviations: float = 1.0  # of the forecast's error that are provided for
    lengths_s: float = 20.0  # lengths are of the requests that arrived in so long
    least_lengths: int = 200  # or of so many
    may_flip: bool = True  # else roles change by a worker that goes and one that starts
    simulations: int = 6  # of candidate sizes in one decision, at most
    simulate_every_s: float = 60.0  # while the estimate does not change


@dataclass(frozen=True, slots=True)
class _Estimate:
    """One interval's figures."""

    demand: Demand  # at the rate that is provided for
    capacity: Capacities
    bounds: Bounds
    need: PoolSizes | None  # None: more than there may be

    def carries(self, sizes: PoolSizes) -> float:
        """Return how many requests of each one asked for these sizes keep in time, by the estimate."""
        return self.capacity.rate(sizes.prefill, sizes.decode) / self.demand.rate


class SizingDecider:
    """Implements core.control.actions.Decider."""

    def __init__(
        self,
        model: ServiceModel,
        settings: Settings | None = None,
        evaluator: Evaluator | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Decide by `model`; `evaluator` checks sizes on `executor`, at once where none is given."""
        self.settings = settings = settings or Settings()
        self._model = model
        self._checks: Checks | None = None
        if evaluator is not None:
            self._checks = Checks(
                evaluator, executor or AtOnce(), budget=settings.simulations, every_s=settings.simulate_every_s
            )
        self._arrivals = ArrivalForecast()
        self._lengths = LengthMemory(
            model.classes, window_s=settings.lengths_s, least=settings.least_lengths, longest_s=600.0
        )
        self._attained = Attainment(settings.judge_s)
        self._judge = Judge(settle_s=settings.settle_s, window_s=settings.judge_s)
        self._pressure = Pressure(model)
        self._needs = NeedHistory(settings.down_after_s)
        self._flips = FlipHistory(settings.cool_down_s)
        self._busy_s: float | None = None  # when a request was last seen
        self._outcomes: list[DecisionOutcome] = []

    @property
    def waits_for(self) -> str:
        """See Decider."""
        return ""

    def use(self, model: ServiceModel) -> None:
        """Reckon with other costs from now on; classes stay what they are."""
        self._model = model
        self._pressure.use(model)

    def take_outcomes(self) -> tuple[DecisionOutcome, ...]:
        """Hand over the outcomes of decisions that were found since the last call."""
        taken, self._outcomes = tuple(self._outcomes), []
        return taken

    def decide(self, observation: Observation) -> Decision | None:
        """Say what is to change; see Decider."""
        seen = observation
        demand = self._observe(seen)
        if self._is_idle(seen):
            return self._to_floor(seen)
        if demand is None:
            return None
        estimate = self._estimate(seen, demand)
        decision = self._taken_back(seen, estimate) or self._resized(seen, estimate)
        if decision is not None:
            self._judge.decided(decision, seen.now_s, self._attained, demand.traffic)
            self._flips.decided(decision, seen.now_s)
            self._attained.forget()
        return decision

    def _observe(self, seen: Observation) -> Demand | None:
        """Take the interval in; return the demand that is to be provided for, None as long as none is known."""
        arrived = sum(report.num_arrived for report in seen.classes)
        self._arrivals.observe(arrived, seen.window_s, seen.now_s)
        self._lengths.observe(seen.samples, seen.now_s, each=seen.num_ended / max(1, len(seen.samples)))
        self._attained.observe(seen)
        if arrived or self._busy_s is None or any(w.num_running or w.num_waiting for w in seen.workers):
            self._busy_s = seen.now_s
        lead_s = seen.start_s if _may_grow(self._bounds(seen), seen.wanted) else seen.flip_s
        expected = self._arrivals.forecast(seen.now_s, lead_s + 2 * seen.window_s)
        rate = expected.high(self.settings.deviations) * self._pressure.missed
        demand = self._lengths.demand(max(1e-3, rate), seen.now_s)
        return None if demand is None else self._pressure.adjusted(demand, seen, self._arrivals.rate)

    def _bounds(self, seen: Observation) -> Bounds:
        limits, settings = seen.limits, self.settings
        most = min(
            total(limits.most),
            *(n for n in (limits.most_workers, settings.most_workers) if n is not None),
            _MOST_ESTIMATED,
        )
        least = max(settings.least_workers, total(limits.least))
        return Bounds(limits, least, max(most, total(seen.wanted)))

    def _is_idle(self, seen: Observation) -> bool:
        return self._busy_s is not None and seen.now_s - self._busy_s >= self.settings.idle_s

    def _to_floor(self, seen: Observation) -> Decision | None:
        floor = seen.limits.least
        if total(floor) < self.settings.least_workers or floor == seen.wanted:
            return None
        return Decision(floor, f"no request for {self.settings.idle_s:.0f} s: the pools go to their floor")

    def _taken_back(self, seen: Observation, estimate: _Estimate) -> Decision | None:
        """Judge the last decision; return its undoing if flips made things worse.

        A fall that is no more than traffic explains counts only if the estimate has nothing against the sizes before.
        """
        outcome = self._judge.observe(seen, estimate.demand.traffic)
        if outcome is None:
            return None
        self._outcomes.append(outcome)
        if outcome.verdict is not Verdict.WORSE or not outcome.decision.flips:
            return None
        ready = {worker.worker_id: worker.role for worker in seen.workers if worker.state == READY}
        flips = tuple(
            RoleFlip(flip.worker_id, other(flip.to))
            for flip in outcome.decision.flips
            if ready.get(flip.worker_id) is flip.to
        )
        sizes = seen.wanted
        for flip in flips:
            sizes = sizes.flipped(flip.to)
        if not flips or not seen.limits.allow(sizes) or self._attained.margin >= 0:
            return None
        fell = outcome.attainment_before - outcome.attainment_after
        if fell < self.settings.clear_fall and estimate.carries(sizes) < estimate.carries(seen.wanted):
            return None
        self._flips.bar(outcome.decision.flips[0].to, seen.now_s + self.settings.barred_s)
        before, after = outcome.attainment_before, outcome.attainment_after
        return Decision(sizes, f"attainment fell from {before:.0%} to {after:.0%} after the flip: taken back", flips)

    def _estimate(self, seen: Observation, demand: Demand) -> _Estimate:
        bounds = self._bounds(seen)
        capacity = capacities(self._model, demand, bounds.most_total)
        need = needed(capacity, demand.rate, bounds)
        if need is not None and self._checks is not None:
            need = self._checks.need(self._model, demand, need, bounds, seen.now_s)
        self._pressure.observe(
            self._attained, should_keep=need is not None and _covers(seen.wanted, need) and not seen.is_changing
        )
        return _Estimate(demand, capacity, bounds, need)

    def _resized(self, seen: Observation, estimate: _Estimate) -> Decision | None:
        now, need = seen.wanted, estimate.need
        if need is None:
            return self._split(seen, estimate)
        self._needs.observe(need, seen.now_s)
        if not _covers(now, need):
            return self._enough(seen, estimate, need)
        low = self._needs.most(self.settings.down_after_s, seen.now_s)
        if low is None:
            return None
        sizes = PoolSizes(min(now.prefill, low.prefill), min(now.decode, low.decode))
        if sizes == now or total(sizes) < estimate.bounds.least_total:
            return None
        reason = f"{_said(sizes)} have been enough for {self.settings.down_after_s:.0f} s"
        return Decision(sizes, reason, figures=self._figures(seen, estimate))

    def _enough(self, seen: Observation, estimate: _Estimate, need: PoolSizes) -> Decision | None:
        """Make up for what is missing: by flips of workers that are too many in the other pool, then by starts."""
        now = seen.wanted
        spare = self._needs.most(self.settings.flip_after_s, seen.now_s)
        if seen.least_slack_s is not None and seen.least_slack_s < 0:
            spare = need  # requests are late already
        sizes = now
        for role in Role:
            while spare is not None and sizes.of(role) < need.of(role) and self._flips.allows(role, seen.now_s):
                if sizes.of(other(role)) <= spare.of(other(role)):
                    break
                sizes = sizes.flipped(role)
        flips = flips_between(now, sizes, seen.workers) if self.settings.may_flip else ()
        if self.settings.may_flip:
            sizes = _after(now, flips)
        # What the other pool will have to spare in a moment is not started.
        lasting = need if spare is None else _larger(need, spare)
        room = min(estimate.bounds.most_total, max(total(lasting), total(sizes))) - total(sizes)
        for role in Role:
            more = min(room, max(0, need.of(role) - sizes.of(role)))
            room -= more
            sizes = _grown(sizes, role, more)
        if sizes == now or not seen.limits.allow(sizes):
            return None
        carried = estimate.carries(now)
        reason = f"{_said(now)} carry {carried:.0%} of {estimate.demand.rate:.1f} requests/s: {_said(need)} are needed"
        return Decision(sizes, reason, flips, self._figures(seen, estimate))

    def _split(self, seen: Observation, estimate: _Estimate) -> Decision | None:
        """Take all workers there may be, split so that the most requests are in time."""
        now, bounds = seen.wanted, estimate.bounds
        split = best_split(estimate.capacity, bounds.most_total, bounds, now)
        check = SplitCheck(split, None, None)
        if self._checks is not None and split != now:
            found = self._checks.split(self._model, estimate.demand, split, now, bounds, seen.now_s)
            if found is None:
                return None
            check, split = found, found.sizes
        if split == now or not self._is_worth(now, check, estimate):
            return None
        to = Role.PREFILL if split.prefill > now.prefill else Role.DECODE
        if not self._flips.allows(to, seen.now_s):
            return None
        flips = flips_between(now, split, seen.workers) if self.settings.may_flip else ()
        sizes = _after(now, flips) if self.settings.may_flip else split
        for role in Role:
            more = min(bounds.most_total - total(sizes), max(0, split.of(role) - sizes.of(role)))
            sizes = _grown(sizes, role, more)
        if sizes == now or not seen.limits.allow(sizes):
            return None
        carried = (estimate.carries(now), estimate.carries(split))
        reason = (
            f"{estimate.demand.rate:.1f} requests/s are more than {bounds.most_total} workers carry: {_said(split)} "
            f"carry {carried[1]:.0%}, {_said(now)} {carried[0]:.0%}"
        )
        return Decision(sizes, reason, flips, self._figures(seen, estimate))

    def _is_worth(self, now: PoolSizes, check: SplitCheck, estimate: _Estimate) -> bool:
        if total(now) < estimate.bounds.most_total:
            return True
        if check.kept is not None and check.kept_now is not None:
            return check.kept >= self.settings.gain * check.kept_now
        return estimate.carries(check.sizes) >= self.settings.gain * estimate.carries(now)

    def _figures(self, seen: Observation, estimate: _Estimate) -> tuple[tuple[str, float], ...]:
        demand, need = estimate.demand, estimate.need
        return (
            ("rate", self._arrivals.rate),
            ("rate provided for", demand.rate),
            ("mean prompt", demand.mean_prompt),
            ("mean output", demand.mean_output),
            ("prefill needed", float(need.prefill) if need else float("nan")),
            ("decode needed", float(need.decode) if need else float("nan")),
            ("carried before", estimate.carries(seen.wanted)),
            ("attained before", self._attained.share),
            ("load factor", self._pressure.missed),
            ("simulated", float(self._checks.simulated if self._checks else 0)),
        )


def _covers(sizes: PoolSizes, need: PoolSizes) -> bool:
    return all(sizes.of(role) >= need.of(role) for role in Role)


def _larger(a: PoolSizes, b: PoolSizes) -> PoolSizes:
    return PoolSizes(max(a.prefill, b.prefill), max(a.decode, b.decode))


def _may_grow(bounds: Bounds, sizes: PoolSizes) -> bool:
    return total(sizes) < bounds.most_total


def _grown(sizes: PoolSizes, role: Role, count: int) -> PoolSizes:
    grow = {role: count}
    return PoolSizes(sizes.prefill + grow.get(Role.PREFILL, 0), sizes.decode + grow.get(Role.DECODE, 0))


def _after(sizes: PoolSizes, flips: tuple[RoleFlip, ...]) -> PoolSizes:
    for flip in flips:
        sizes = sizes.flipped(flip.to)
    return sizes


def _said(sizes: PoolSizes) -> str:
    return f"{sizes.prefill}P{sizes.decode}D"
