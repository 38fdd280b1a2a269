"""The search as a whole: from a question to a plan with its verdict.

Owns what is done in which order and what the plan says of it. Must not know how any of it is done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial

from core.errors import ConfigError
from sim.plan import (
    CLEAR,
    Candidate,
    Interval,
    Plan,
    PlanQuestion,
    Progress,
    SearchStats,
    Shortfall,
    Verdict,
    is_clear,
)
from sim.policy_gear import gears_differ
from sim.search.bounds import Bounds, Demand
from sim.search.cells import is_large, search_in_cells
from sim.search.curve import curve_of
from sim.search.estimate import Estimates
from sim.search.families import Bests, climb
from sim.search.fixed import fixed_placement
from sim.search.goodput import Judge, Scenario, Simulate, resampled, step_below
from sim.search.infeasible import Loosening
from sim.search.intervals import Spread, Worlds, draws_of, goodput_interval, interval, ratio
from sim.search.notes import Findings, notes_on
from sim.search.pareto import front
from sim.search.placements import ONE_POOL_MODES, Placement, fits_of, levels
from sim.search.race import Found, Race
from sim.search.recheck import Recheck, gears_apart
from sim.search.referee import Referee
from sim.simulate import simulate
from sim.workload import Workload

_FAR_BEHIND = 0.7  # of the best goodput: fewer draws show well enough that a family loses
_VANISHING = 0.02  # of the estimated rate: about what an idle cluster meets


def search(
    question: PlanQuestion,
    *,
    progress: Progress | None = None,
    workloads: tuple[Workload, ...] = (),
    run: Simulate = simulate,
    recheck: Recheck | None = gears_differ,
    referee: Referee | None = None,
) -> Plan:
    """Find the cheapest placement that carries the rate, or the one of most goodput when no rate is asked for.

    Equal questions give equal plans, but for the time taken. `workloads`: those of the seeds, when they are not to be
    resampled from the question's. `run` judges placements, `recheck` says how far the router's own policies are from
    it, and `referee` what they keep on the best of either family, which then decides between them. Raises ConfigError
    for a question without devices, targets or requests.
    """
    for name, given in (("groups", question.groups), ("targets", question.targets), ("seeds", question.seeds)):
        if not given:
            raise ConfigError(f"a plan needs {name}; the question has none")
    if not len(question.workload):
        raise ConfigError("a plan needs requests; the workload has none: choose another --trace or --workload")
    if question.rate is not None and question.rate <= 0:
        raise ConfigError(f"rate must be above 0 requests per second, not {question.rate:g}")
    if is_large(question) and not workloads:
        return search_in_cells(question, partial(search, progress=progress, run=run, recheck=recheck, referee=referee))
    scenario = Scenario(workloads or resampled(question.workload, question.seeds), question.targets)
    return _Search(question, scenario, run, recheck, referee, progress).plan()


@dataclass(slots=True, eq=False)
class _Search:
    question: PlanQuestion
    scenario: Scenario
    run: Simulate
    recheck: Recheck | None
    referee: Referee | None
    progress: Progress | None
    race: Race = field(init=False)
    worlds: Worlds = field(init=False)
    _started_s: float = field(init=False)
    _budgets: tuple[float, ...] = field(init=False)
    _budgets_done: int = 0

    def __post_init__(self) -> None:
        question, groups = self.question, self.question.groups
        self._started_s = time.monotonic()
        self._budgets = levels(question)
        demand = Demand.of(question.workload, question.targets)
        judge = Judge(self.scenario, self.run)
        self.race = Race(question, judge, Bounds(demand), Estimates(demand), self._hear)
        self.worlds = Worlds(draws_of(self.scenario, groups=len(groups)), groups, self.scenario, self.run)

    def plan(self) -> Plan:
        """Climb the budgets, then judge the finalists with their intervals."""
        climbed = self._climb()
        bests, own = self._refereed(climbed[-1] if climbed else Bests(0.0))
        if bests.best is None:
            return self._nothing_kept()
        wanted = self.question.rate
        short = wanted is not None and bests.best.step < step_below(wanted)
        finalists = tuple(f for f in (bests.one_pool, bests.disaggregated) if f is not None)
        ceilings = {found: self.race.ceiling(found.placement) for found in finalists}
        spreads = {f: self._spread(f, bests.best, ceilings[f]) for f in finalists}
        compared = _compared(bests, spreads, own)
        best = self._choose(bests, tuple(climbed[:-1]), compared)
        shortfall = self._shortfall(tuple(f.placement for f in finalists), wanted or best.rate, best) if short else None
        candidates = {found: self._candidate(found, found, spreads[found]) for found in finalists}
        known = {found.placement for found in finalists}
        lesser = {f: None for b in climbed if (f := b.best) is not None and f.placement not in known}
        front_of = tuple(self._candidate(f, best, spreads[best]) for f in lesser)
        verdict = Verdict.ONE_POOL if best is bests.one_pool else Verdict.DISAGGREGATE
        if compared is not None and not is_clear(compared):
            verdict = Verdict.UNCLEAR
        rate = wanted or best.rate
        apart = gears_apart(self.recheck, self.scenario, best.placement, rate)
        limited = best.step >= step_below(ceilings[best])
        findings = Findings(len(self.scenario.workloads), limited, apart is None)
        return Plan(
            verdict=Verdict.INFEASIBLE if shortfall else verdict,
            best=candidates[best],
            best_one_pool=candidates[bests.one_pool] if bests.one_pool else self._unkept(rate, one_pool=True),
            best_disaggregated=(
                candidates[bests.disaggregated] if bests.disaggregated else self._unkept(rate, one_pool=False)
            ),
            front=front((*candidates.values(), *front_of)),
            curve=curve_of(self.race.judge, best, wanted),
            shortfall=shortfall,
            gears_differ=apart,
            stats=self._stats(),
            notes=notes_on(self.question, best, findings),
            ratio=compared,
            own_policy=(own[finalists[1]], own[finalists[0]]) if own else None,
        )

    def _spread(self, found: Found, best: Found, ceiling: float) -> Spread:
        behind = found.rate < _FAR_BEHIND * best.rate
        return self.worlds.spread(found, self.question.rate or found.rate, ceiling=ceiling, roughly=behind)

    def _climb(self) -> list[Bests]:
        if self.question.fixed is not None:
            placement = fixed_placement(self.question, self.question.fixed)
            found = self.race.judged(placement)
            if placement.cluster.mode in ONE_POOL_MODES:
                return [Bests(placement.price_per_hour, one_pool=found)]
            return [Bests(placement.price_per_hour, disaggregated=found)]
        climbed = []
        for bests in climb(self.race):
            self._budgets_done += 1
            climbed.append(bests)
        return climbed

    def _refereed(self, bests: Bests) -> tuple[Bests, dict[Found, float]]:
        """Return the bests, P/D with the prefill steps that suit it, and what the router's own policy keeps on both.

        Whether other steps are better the policy says too, where it is asked; the rates are empty where it is not.
        """
        one_pool, apart = bests.one_pool, bests.disaggregated
        if apart is None or self.question.fixed is not None:
            return bests, {}
        stepped = self.race.stepped(apart)
        if self.referee is not None and one_pool is not None:
            own = {
                f: self.referee(f.placement, self.scenario, f.rate) for f in dict.fromkeys((one_pool, apart, stepped))
            }
            rates = {found: rate for found, rate in own.items() if rate is not None}
            if len(rates) == len(own):
                chosen = max((apart, stepped), key=lambda found: rates[found])
                return replace(bests, disaggregated=chosen), rates
        return replace(bests, disaggregated=stepped), {}

    def _choose(self, bests: Bests, lesser: tuple[Bests, ...], compared: Interval | None) -> Found:
        """Return what carries more, by the ratio of P/D to one pool.

        Where that is nearly 1, clear or not, the simpler one is chosen, one pool; but never for less goodput than a
        smaller budget gives, and never what does not carry the rate where the other one does.
        """
        best, wanted = bests.best, self.question.rate
        one_pool, disaggregated = bests.one_pool, bests.disaggregated
        if best is None:
            raise AssertionError("a choice needs something found")
        if one_pool is None or disaggregated is None or compared is None:
            return best
        ahead = disaggregated if compared.mid >= CLEAR else one_pool
        enough = 0
        if wanted is not None and best.step >= step_below(wanted):
            enough = step_below(wanted)
        if CLEAR > compared.mid > 1 / CLEAR:
            enough = max((enough, *(b.best.step for b in lesser if b.best is not None)))
        return ahead if ahead.step >= enough else best

    def _candidate(self, found: Found, like: Found, spread: Spread) -> Candidate:
        """Describe a finalist; the intervals of others have the relative width of the one that they are `like`."""
        placement, rate = found.placement, self.question.rate or found.rate
        goodput = goodput_interval(spread, found.rate)
        attained = self.race.judge.attainment(placement, rate)
        if found is like:
            shares = tuple(interval(spread.attainment[:, i], share) for i, share in enumerate(attained))
        else:
            shares = tuple(Interval(share, share, share) for share in attained)
        return Candidate(
            placement.cluster, placement.group, goodput, shares, placement.price_per_hour, placement.nodes_spanned
        )

    def _unkept(self, rate: float, *, one_pool: bool) -> Candidate | None:
        """Describe the largest placement of a kind that keeps the promise at no rate; None when none fits."""
        tried = [p for p in self.race.considered if (p.cluster.mode in ONE_POOL_MODES) is one_pool]
        if not tried:
            return None
        placement = max(tried, key=lambda p: (p.price_per_hour, self.race.estimate(p)))
        return self._at_no_rate(placement, rate)

    def _at_no_rate(self, placement: Placement, rate: float) -> Candidate:
        shares = tuple(Interval(a, a, a) for a in self.race.judge.attainment(placement, rate))
        none = Interval(0.0, 0.0, 0.0)
        return Candidate(
            placement.cluster, placement.group, none, shares, placement.price_per_hour, placement.nodes_spanned
        )

    def _nothing_kept(self) -> Plan:
        """Say what binds when not even an idle cluster keeps the promise, or nothing fits."""
        fits = fits_of(self.question)
        if not fits:
            longest = int(self.question.workload.prompt_tokens.max())
            note = f"no parallel size in the profiles fits the devices and holds the longest prompt ({longest} tokens)"
            shortfall = Shortfall("rate", self.question.targets, None, note)
            return self._plan_without(shortfall, None)
        largest = sorted(self.race.considered, key=lambda p: (p.price_per_hour, self.race.estimate(p)), reverse=True)
        placements = tuple(largest[:3])
        rate = self.question.rate or self.race.estimate(placements[0]) * _VANISHING
        return self._plan_without(self._shortfall(placements, rate, None), placements[0])

    def _plan_without(self, shortfall: Shortfall, placement: Placement | None) -> Plan:
        best = None
        if placement is not None:
            rate = self.question.rate or self.race.estimate(placement) * _VANISHING
            best = self._at_no_rate(placement, rate)
        family = best is not None and best.cluster.mode in ONE_POOL_MODES
        return Plan(
            verdict=Verdict.INFEASIBLE,
            best=best,
            best_one_pool=best if family else None,
            best_disaggregated=None if family else best,
            front=(),
            curve=(),
            shortfall=shortfall,
            gears_differ=None,
            stats=self._stats(),
        )

    def _shortfall(self, placements: tuple[Placement, ...], rate: float, best: Found | None) -> Shortfall:
        loosening = Loosening(self.scenario, placements, rate, self.run)
        shortfall = loosening.shortfall(best.rate if best else None)
        self.race.judge.simulated_requests += loosening.simulated_requests
        return shortfall

    def _stats(self) -> SearchStats:
        race = self.race
        return SearchStats(
            considered=len(race.considered),
            pruned=len(race.considered) - len(race.simulated),
            simulated=len(race.simulated),
            simulated_requests=race.judge.simulated_requests + self.worlds.simulated_requests,
            elapsed_s=time.monotonic() - self._started_s,
        )

    def _hear(self, best: Found | None) -> None:
        if self.progress is None:
            return
        seen = len(self.race.considered)
        total = max(seen, round(seen * len(self._budgets) / (self._budgets_done + 1)))
        self.progress(done=seen, total=total, best=None if best is None else self._sketch(best))

    def _sketch(self, found: Found) -> Candidate:
        placement, rate = found.placement, found.rate
        return Candidate(
            placement.cluster,
            placement.group,
            Interval(rate, rate, rate),
            tuple(Interval(t.attainment, t.attainment, t.attainment) for t in self.question.targets),
            placement.price_per_hour,
            placement.nodes_spanned,
        )


def _compared(bests: Bests, spreads: dict[Found, Spread], own: dict[Found, float]) -> Interval | None:
    """Return the ratio of P/D to one pool: what the referee saw, where it did, and how the draws spread."""
    apart, together = bests.disaggregated, bests.one_pool
    if apart is None or together is None:
        return None
    rates = own or {apart: apart.rate, together: together.rate}
    return ratio(spreads[apart], spreads[together], (rates[apart], rates[together]))
