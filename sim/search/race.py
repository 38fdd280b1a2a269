"""The best placement of a family within a budget: bounded, ordered, and raced against the best so far.

Owns the order of trials and what is left out: a placement whose bound lies below the best, one that just above the rate
of the best falls far behind it on the first requests alone, and one that fails there. Races are run on the first seed;
the winner, and those close behind it, are confirmed with all seeds and a second pass. Must not know families or
budgets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from sim.cluster import Admission, Mode, Routing
from sim.plan import PlanQuestion
from sim.search.bounds import Bounds
from sim.search.crossing import FLOOR_STEPS
from sim.search.estimate import Estimates
from sim.search.goodput import Judge, rate_of
from sim.search.placements import Placement
from sim.search.routings import neighbours, prefill_steps

BEHIND = 0.02  # of attainment, on a third of the first seed's requests
_MAX_ROUNDS = 4  # of settings after placements after settings; each round but the last found something better
_WIDTH = 4  # steps: how exactly a race knows its best, and by how many another must beat it; confirming is exact
_CLOSE, _MOST_CLOSE = 6, 2  # so many steps behind the winner of a race, so many others are confirmed too
_FEW = 5  # splits of a mode that a budget on the way gets to try


@dataclass(frozen=True, slots=True)
class Found:
    """A placement, the highest step of rate that it keeps, and the one that the race saw."""

    placement: Placement
    step: int
    raced: int

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
    considered: dict[Placement, None] = field(default_factory=dict)  # all ever raced, settings included, in order
    simulated: set[Placement] = field(default_factory=set)  # those of them that were simulated
    _calibration: dict[Mode, float] = field(default_factory=dict)  # the last rate found over its estimate
    _settings: dict[Mode, tuple[Routing, int]] = field(default_factory=dict)  # the best found, and the decode chunk
    _beaten: list[Found] = field(default_factory=list)  # in the race under way

    def best(self, placements: Iterable[Placement], given: Found | None, *, thorough: bool) -> Found | None:
        """Return the best of `placements` and `given`: settings are refined, then all placements tried with them.

        Unless `thorough`, only the most promising placements are tried, and settings are refined only for a mode that
        has none from a smaller budget. What is found has still to be confirmed.
        """
        placements, best = tuple(placements), given
        self._beaten.clear()
        for turn in range(_MAX_ROUNDS):
            entered, best = best, self._first(map(self._with_settings, placements), best, few=not thorough)
            if best is not None:  # refusal moves the balance of the pools; it helps no placement that fails when idle
                best = self._first(map(_refusing, placements), best, few=not thorough)
            if best is None or (best is entered and not (thorough and turn == 0)):
                break
            if not thorough and best.placement.cluster.mode in self._settings:
                break
            best = self._refined(best)
            cluster = best.placement.cluster
            self._settings[cluster.mode] = (cluster.routing, cluster.decode.max_num_batched_tokens)
        return best

    def judged(self, placement: Placement) -> Found | None:
        """Return what the placement keeps as it is."""
        return self.confirmed(self._against(placement, None), None, thorough=True)

    def nearby(self, placements: Iterable[Placement], best: Found | None) -> Found | None:
        """Return the best of `placements`, as they are, and `best`; it has still to be confirmed."""
        return self._first(map(self._with_settings, placements), best)

    def stepped(self, found: Found) -> Found:
        """Return `found` with the tokens in a prefill step that keep most, its settings refined for them; confirmed."""
        self._beaten.clear()
        best = self._first(prefill_steps(self.question, found.placement), found)
        if best is None or best is found:
            return found
        return self.confirmed(self._refined(best), found, thorough=True) or found

    def confirmed(self, found: Found | None, given: Found | None, *, thorough: bool) -> Found | None:
        """Return `found` at the step that all seeds and a second pass confirm; `given` when that is no better.

        When `thorough`, the step is the highest, and those close behind in the race are given the same chance.
        """
        if found is None or (found is given and not thorough):
            return given
        confirmed = None if found is given else given  # that was perhaps confirmed in haste
        if thorough:
            close = sorted((f for f in self._beaten if f.raced >= found.raced - _CLOSE), key=lambda f: -f.raced)
            for one in (found, *close[:_MOST_CLOSE]):
                confirmed = self._highest(one, confirmed) or confirmed
        else:
            floor = given.step if given else found.step - FLOOR_STEPS
            step = self.judge.confirmed_step(found.placement, found.step, above=floor, whole=False)
            confirmed = given if step is None else replace(found, step=step)
        self.heard(confirmed)
        return confirmed

    def ceiling(self, placement: Placement) -> float:
        """Return the rate above which the placement cannot last, by arithmetic."""
        return self.bounds.lasting_rate(placement.unit) * placement.copies

    def bound(self, placement: Placement) -> float:
        """Return the rate that the placement cannot exceed, in this run or for long."""
        return min(self.bounds.highest_rate(placement.unit) * placement.copies, self.ceiling(placement))

    def estimate(self, placement: Placement) -> float:
        """Return about the rate that the placement keeps."""
        return self.estimates.rate(placement.unit) * placement.copies

    def _highest(self, found: Found, best: Found | None) -> Found | None:
        """Return `found` at the highest step that is confirmed, if that is above `best`."""
        floor = best.step if best else found.step - FLOOR_STEPS
        ceiling = self.ceiling(found.placement)
        step = self.judge.highest_confirmed(found.placement, found.step, ceiling=ceiling, above=floor)
        return None if step is None else replace(found, step=step)

    def _refined(self, found: Found) -> Found:
        """Change one setting at a time for as long as that helps."""
        entered: Found | None = None
        while found is not entered:
            entered = found
            for placement in neighbours(self.question, entered.placement):
                found = self._against(placement, found) or found
        return found

    def _first(self, placements: Iterable[Placement], best: Found | None, *, few: bool = False) -> Found | None:
        ranked = sorted(((self._promise(p), p) for p in placements), key=lambda pair: pair[0], reverse=True)
        splits = Counter[Mode]()
        for _, placement in ranked:
            splits[placement.cluster.mode] += placement.cluster.prefill is not None
            if few and splits[placement.cluster.mode] > _FEW:
                continue
            best = self._against(placement, best) or best
            self.heard(best)
        return best

    def _promise(self, placement: Placement) -> float:
        """Return about what the placement keeps, by what others of its mode did."""
        expected = self.estimate(placement) * self._calibration.get(placement.cluster.mode, 1.0)
        return min(expected, self.bound(placement))

    def _against(self, placement: Placement, best: Found | None) -> Found | None:
        """Return what the placement keeps if that is more than `best`."""
        self.considered[placement] = None
        bound = self.bound(placement)
        if bound <= 0 or (best is not None and bound < rate_of(best.raced + _WIDTH)):
            return None
        self.simulated.add(placement)
        if best is not None and self._far_behind(placement, best):
            return None
        above = best.raced + _WIDTH - 1 if best else None
        guess = max(1e-6, self._promise(placement))
        step = self.judge.highest_step(placement, hint=guess, ceiling=bound, above=above, width=_WIDTH)
        if step is None:
            return None
        self._calibration[placement.cluster.mode] = rate_of(step) / self.estimate(placement)
        if best is not None:
            self._beaten.append(best)
        return Found(placement, step, step)

    def _far_behind(self, placement: Placement, best: Found) -> bool:
        """Say whether the first requests alone show that the placement loses to the best, just above its rate."""
        step = best.raced + _WIDTH
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
