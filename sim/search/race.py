"""The best placement of a family within a budget: bounded, ordered, and raced against the best so far.

Owns the order of trials and what is left out: a placement whose bound lies below the best, one that fails at one step
of rate above the best, and one that at that rate falls far behind the best on the first requests alone. Only the winner
is confirmed with all seeds and a second pass. Must not know families or budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from sim.cluster import Admission, Mode, Routing
from sim.plan import PlanQuestion
from sim.search.bounds import Bounds
from sim.search.estimate import Estimates
from sim.search.goodput import FLOOR_STEPS, Judge, rate_of
from sim.search.placements import Placement
from sim.search.routings import neighbours

BEHIND = 0.05  # of attainment, on a third of the first seed's requests
_MAX_ROUNDS = 4  # of settings after placements after settings; each round but the last found something better


@dataclass(frozen=True, slots=True)
class Found:
    """A placement and the highest step of rate that it keeps."""

    placement: Placement
    step: int

    @property
    def rate(self) -> float:
        """Requests per second."""
        return rate_of(self.step)


@dataclass(slots=True, eq=False)
class Race:
    """Trials under one scenario, with what they were; `heard` is told of every placement that is done with."""

    question: PlanQuestion
    judge: Judge
    bounds: Bounds
    estimates: Estimates
    heard: Callable[[Found | None], None]
    considered: set[Placement] = field(default_factory=set)  # all that were ever raced, settings included
    simulated: set[Placement] = field(default_factory=set)  # those of them that were simulated
    _calibration: dict[Mode, float] = field(default_factory=dict)  # the last rate found over its estimate
    _settings: dict[Mode, tuple[Routing, int]] = field(default_factory=dict)  # the best found, and the decode chunk

    def best(self, placements: Iterable[Placement], best: Found | None, *, thorough: bool) -> Found | None:
        """Return the best of `placements` and `best`: settings are refined, then all placements tried with them.

        Unless `thorough`, settings are refined only for a mode that has none from a smaller budget.
        """
        placements, given = tuple(placements), best
        for _ in range(_MAX_ROUNDS):
            entered, best = best, self._first(map(self._with_settings, placements), best)
            if thorough:  # refusal moves the balance of the pools, so it is tried with every split
                best = self._first(map(_refusing, placements), best)
            if best is None or best is entered:
                break
            if not thorough and best.placement.cluster.mode in self._settings:
                break
            best = self._refined(best)
            cluster = best.placement.cluster
            self._settings[cluster.mode] = (cluster.routing, cluster.decode.max_num_batched_tokens)
        return self._confirmed(best, given)

    def judged(self, placement: Placement) -> Found | None:
        """Return what the placement keeps as it is."""
        return self._confirmed(self._against(placement, None), None)

    def nearby(self, placements: Iterable[Placement], best: Found | None) -> Found | None:
        """Return the best of `placements`, as they are, and `best`."""
        return self._confirmed(self._first(map(self._with_settings, placements), best), best)

    def bound(self, placement: Placement) -> float:
        """Return the rate that the placement cannot exceed."""
        return self.bounds.highest_rate(placement.unit) * placement.copies

    def estimate(self, placement: Placement) -> float:
        """Return about the rate that the placement keeps."""
        return self.estimates.rate(placement.unit) * placement.copies

    def _confirmed(self, found: Found | None, given: Found | None) -> Found | None:
        """Return `found` at the step that all seeds and a second pass confirm; `given` when that is no better."""
        if found is None or found is given:
            return found
        floor = given.step if given else found.step - FLOOR_STEPS
        step = self.judge.confirmed_step(found.placement, found.step, above=floor)
        confirmed = given if step is None else replace(found, step=step)
        self.heard(confirmed)
        return confirmed

    def _refined(self, found: Found) -> Found:
        """Change one setting at a time for as long as that helps."""
        entered: Found | None = None
        while found is not entered:
            entered = found
            for placement in neighbours(self.question, entered.placement):
                found = self._against(placement, found) or found
        return found

    def _first(self, placements: Iterable[Placement], best: Found | None) -> Found | None:
        ranked = sorted(
            ((min(self.estimate(p), self.bound(p)), p) for p in placements), key=lambda pair: pair[0], reverse=True
        )
        for _, placement in ranked:
            best = self._against(placement, best) or best
            self.heard(best)
        return best

    def _against(self, placement: Placement, best: Found | None) -> Found | None:
        """Return what the placement keeps if that is more than `best`."""
        self.considered.add(placement)
        bound = self.bound(placement)
        if bound <= 0 or (best is not None and bound < rate_of(best.step + 1)):
            return None
        self.simulated.add(placement)
        if best is not None and self._far_behind(placement, best):
            return None
        mode = placement.cluster.mode
        guess = max(1e-6, self._calibration.get(mode, 1.0) * self.estimate(placement))
        step = self.judge.highest_step(placement, hint=guess, above=best.step if best else None)
        if step is None:
            return None
        self._calibration[mode] = rate_of(step) / self.estimate(placement)
        return Found(placement, step)

    def _far_behind(self, placement: Placement, best: Found) -> bool:
        """Say whether the first requests alone show that the placement loses to the best, at one step above it."""
        step = best.step + 1
        pairs = zip(self.judge.glimpse(placement, step), self.judge.glimpse(best.placement, step), strict=True)
        shares = (target.attainment for target in self.judge.scenario.targets)
        return any(own < share and own < other - BEHIND for (own, other), share in zip(pairs, shares, strict=True))

    def _with_settings(self, placement: Placement) -> Placement:
        mode = placement.cluster.mode
        if mode not in self._settings:
            return placement
        routing, chunk = self._settings[mode]
        decode = placement.cluster.decode
        if mode is Mode.HYBRID:
            decode = replace(decode, max_num_batched_tokens=chunk)
        return replace(placement, cluster=replace(placement.cluster, routing=routing, decode=decode))


def _refusing(placement: Placement) -> Placement:
    return placement.routed(replace(placement.cluster.routing, admission=Admission.TTFT))
