"""What a cluster can do at most, and about what it will do, without simulating it.

Owns the work-conservation bound (a cluster whose bound is below the best goodput need not be simulated), and the
estimate that orders the rest and seeds the bisection. Both are arithmetic over the lengths of the requests. Must not
simulate.

The bound. With a share s in time, what the workers need for the cheapest s of the requests cannot exceed the time they
have. A prompt costs at least its share of the cheapest batch that still ends within the TTFT target. A decoded
token: for steps j of B_j sequences and t_j seconds, and requests whose mean step time is at most T, sum(B_j * t_j)
<= T * sum(B_j). So for every weight m >= 0

    time = sum(t_j) >= sum(t_j * (1 + m * B_j) - m * T * B_j)

which splits over tokens: one with c tokens of context costs at least min over B of F(B) * (1 / B + m) + C * c *
(1 + m * B) - m * T (Lagrangian duality; F, C as in core.latency.step). It is concave in c, so the mean of its ends
bounds a request from below. The best m gives the bound.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np

from core.latency.step import Table
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.search.goodput import WARM_UP_SHARE
from sim.workload import Floats, Workload

MARGIN = 0.03  # what the bound allows for: a finite run, whose ends are not steady
_WEIGHTS = np.concatenate(([0.0], np.geomspace(3e-4, 3.0, 16)))  # m of the module's docstring, 1 / sequences
_CONTEXT_KNOTS = 48


def tabulated(table: Table, at: Floats) -> Floats:
    """Evaluate a table at many points."""
    knots, values = np.array(table.at), np.array(table.value)
    inside: Floats = np.interp(at, knots, values)
    beyond: Floats = np.maximum(at - knots[-1], 0.0) * table.slope_beyond
    return inside + beyond


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """What the requests ask for; one entry for each counted request."""

    tokens: Floats  # of the prompt, to be computed with an unlimited prefix cache
    pairs: Floats
    prompt: Floats
    output: Floats
    slo_class: Floats
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, workload: Workload, targets: tuple[Target, ...]) -> Demand:
        """Read a workload, without the warm-up."""
        skip = int(WARM_UP_SHARE * len(workload))
        prompt = workload.prompt_tokens.astype(np.float64)
        cached = np.minimum(_ideal_hits(workload), prompt - 1)
        tokens = prompt - cached
        return cls(
            tokens=tokens[skip:],
            pairs=(tokens * (cached + tokens / 2))[skip:],
            prompt=prompt[skip:],
            output=workload.output_tokens[skip:].astype(np.float64),
            slo_class=workload.classes()[skip:].astype(np.float64),
            targets=targets,
        )

    @property
    def ttft_s(self) -> float:
        """The loosest target of any class."""
        return max(target.ttft_s for target in self.targets)

    @property
    def tpot_s(self) -> float:
        """The loosest target of any class."""
        return max(target.tpot_s for target in self.targets)

    def cheapest(self, work_s: Floats) -> tuple[float, float]:
        """Add up the cheapest requests of each class, as many as must be in time; and weigh their outputs by work.

        Work below 0 is added of all requests, for more than must may be in time.
        """
        total_s = weighed = 0.0
        for index, target in enumerate(self.targets):
            chosen = np.flatnonzero(self.slo_class == index)
            needed = int(np.ceil(target.attainment * len(chosen) - 1e-9))
            needed = max(needed, int(np.count_nonzero(work_s[chosen] < 0.0)))
            kept = chosen[np.argsort(work_s[chosen], kind="stable")[:needed]]
            total_s += float(work_s[kept].sum())
            weighed += float((work_s[kept] * self.output[kept]).sum())
        return total_s, weighed / total_s if total_s > 0 else 0.0


def _ideal_hits(workload: Workload) -> Floats:
    """Count the prompt tokens that an unlimited cache would hold: leading blocks already seen."""
    hits = np.zeros(len(workload))
    if not len(workload.prefix_start):
        return hits
    seen = np.zeros(int(workload.prefix_ids.max(initial=-1)) + 1, np.bool_)
    for i, (begin, end) in enumerate(zip(workload.prefix_start, workload.prefix_start[1:], strict=False)):
        ids = workload.prefix_ids[begin:end]
        known = seen[ids]
        hits[i] = (len(ids) if known.all() else int(np.argmin(known))) * workload.prefix_block_tokens
        seen[ids] = True
    return hits


class Prompts(enum.Enum):
    """How a pool computes prompts."""

    NONE = enum.auto()
    ALONE = enum.auto()
    IN_CHUNKS = enum.auto()  # also beside decoding sequences, where they cost only what they add


@dataclass(frozen=True, slots=True)
class Work:
    """What one pool does of every request."""

    pool: PoolSpec
    prompts: Prompts
    tokens: bool = False  # it decodes all but the first one, which prefill may have made

    @property
    def key(self) -> tuple[object, ...]:
        """All that the seconds of the work depend on: of the pool, not how many workers it has."""
        pool = self.pool
        limits = (pool.max_num_seqs, pool.max_num_batched_tokens, pool.kv_capacity_tokens)
        return (pool.cost, limits, self.prompts, self.tokens)


@dataclass(slots=True, eq=False)
class Bounds:
    """Bounds of many clusters under one workload; the work of equal workers is added up once."""

    demand: Demand
    _known: dict[tuple[object, ...], tuple[tuple[float, float | None], ...]] = field(default_factory=dict)
    _ratios: dict[tuple[object, ...], float] = field(default_factory=dict)

    def highest_rate(self, cluster: ClusterSpec) -> float:
        """Return requests per second that the cluster cannot exceed (MARGIN included); 0 when not even idle ones do."""
        return self._least_of_pools(cluster, lasting=False) if self._kept_when_idle(cluster) else 0.0

    def lasting_rate(self, cluster: ClusterSpec) -> float:
        """Return what the cluster cannot exceed for long.

        A short run can, because much of its work comes after the last arrival; that is not goodput.
        """
        return self._least_of_pools(cluster, lasting=True)

    def _least_of_pools(self, cluster: ClusterSpec, *, lasting: bool) -> float:
        decode, prefill = cluster.decode, cluster.prefill
        if prefill is None:
            beside = Prompts.IN_CHUNKS if cluster.mode is Mode.ONE_POOL_CHUNKED else Prompts.ALONE
            return self._rate(Work(decode, beside, tokens=True), lanes(decode), lasting=lasting)
        tokens = self._rate(Work(decode, Prompts.NONE, tokens=True), lanes(decode), lasting=lasting)
        if cluster.mode is Mode.DISAGGREGATED:
            return min(tokens, self._rate(Work(prefill, Prompts.ALONE), lanes(prefill), lasting=lasting))
        # Hybrid: what prefill workers do counts as the time that decode workers would need for it, at the best ratio.
        ratio = self._best_ratio(prefill, decode)
        both = Work(decode, Prompts.IN_CHUNKS, tokens=True)
        return min(tokens, self._rate(both, lanes(decode) + lanes(prefill) * ratio, lasting=lasting))

    def _kept_when_idle(self, cluster: ClusterSpec) -> bool:
        """Say whether requests that meet an idle cluster keep the promise; if they do not, no rate does."""
        demand, prefill, decode = self.demand, cluster.prefill or cluster.decode, cluster.decode
        costs = (prefill.cost, decode.cost) if cluster.mode is Mode.HYBRID else (prefill.cost,)
        ttft_s = np.min([tabulated(c.dense, demand.tokens) + min(c.pair.value) * demand.pairs for c in costs], axis=0)
        one = np.ones(1)
        per_token_s = float(tabulated(decode.cost.decode_context, one)[0])
        tpot_s = float(tabulated(decode.cost.decode_fixed, one)[0]) + per_token_s * demand.prompt
        tpot_s = np.where(demand.output > 1, tpot_s, 0.0)
        for index, target in enumerate(demand.targets):
            chosen = demand.slo_class == index
            met = (ttft_s + cluster.request_overhead_s <= target.ttft_s) & (tpot_s <= target.tpot_s)
            if chosen.any() and float(met[chosen].mean()) < target.attainment - MARGIN:
                return False
        return True

    def _rate(self, work: Work, workers: float, *, lasting: bool) -> float:
        """Return the rate at which so many workers are busy all the time; the best weight counts."""
        best = float("inf")
        for total_s, after_s in self._totals(work):
            if lasting:
                after_s = 0.0
            if after_s is not None and total_s / workers > after_s:
                best = min(best, len(self.demand.tokens) / (total_s / workers - after_s))
        return best * (1 + MARGIN)

    def _totals(self, work: Work) -> tuple[tuple[float, float | None], ...]:
        """Return, by weight, the seconds of the cheapest requests, and those that may come after the last arrival.

        None: a weight that makes some work negative bounds the sum, but says nothing of what is left then.
        """
        key = work.key
        if key not in self._known:
            found: list[tuple[float, float | None]] = []
            for row in self._rows(work):
                total_s, outputs = self.demand.cheapest(row)
                # By the last arrival the average request that is not done is half way through.
                after_s = self.demand.ttft_s + outputs * self.demand.tpot_s / 2
                found.append((total_s, None if row.min(initial=0.0) < 0.0 else after_s))
            self._known[key] = tuple(found)
        return self._known[key]

    def _rows(self, work: Work) -> Floats:
        rows = np.zeros((1, len(self.demand.tokens)))
        if work.tokens:
            rows = self._least_decode_s(work.pool)
        if work.prompts is not Prompts.NONE:
            rows = rows + self._least_prompt_s(work.pool, chunked=work.prompts is Prompts.IN_CHUNKS)
        return rows

    def _best_ratio(self, prefill: PoolSpec, decode: PoolSpec) -> float:
        key = (prefill.cost, prefill.max_num_batched_tokens, decode.cost, decode.max_num_batched_tokens)
        if key not in self._ratios:
            moved = self._least_prompt_s(decode, chunked=True)
            self._ratios[key] = float(np.max(moved / self._least_prompt_s(prefill, chunked=False)))
        return self._ratios[key]

    def _least_prompt_s(self, pool: PoolSpec, *, chunked: bool) -> Floats:
        cost, demand = pool.cost, self.demand
        largest = max(float(pool.max_num_batched_tokens), float(demand.prompt.max(initial=1.0)))
        sizes = np.unique(np.clip([1.0, *cost.dense.at, largest], 1.0, largest))
        times_s = tabulated(cost.dense, sizes)
        in_time = times_s <= demand.ttft_s
        # The time per token falls or rises from knot to knot, so it is least at one, or where the target is reached.
        reached = np.interp(demand.ttft_s, times_s, sizes) if np.all(np.diff(times_s) > 0) else largest
        per_token_s = float(np.min(times_s[in_time] / sizes[in_time], initial=np.inf))
        per_token_s = min(per_token_s, float(tabulated(cost.dense, np.array([reached]))[0] / reached))
        if chunked:  # beside decoding sequences a chunk costs only what it adds
            per_token_s = min(per_token_s, float(np.min(np.diff(times_s) / np.diff(sizes), initial=np.inf)))
        pair_s = min(cost.pair.value)
        return np.maximum(demand.tokens * per_token_s + demand.pairs * pair_s + cost.prefill_seq_s, 1e-12)

    def _least_decode_s(self, pool: PoolSpec) -> Floats:
        """Return (weights, requests): the least seconds of each request's decode steps, see the module's docstring."""
        demand, cost = self.demand, pool.cost
        shortest = max(1.0, float(demand.prompt.min(initial=1.0)))
        most = max(1, min(pool.max_num_seqs, int(pool.kv_capacity_tokens / shortest)))
        seqs: Floats = np.arange(1, most + 1, dtype=np.float64)
        fixed_s, context_s = tabulated(cost.decode_fixed, seqs), tabulated(cost.decode_context, seqs)
        last = demand.prompt + demand.output
        knots = np.linspace(0.0, float(last.max(initial=1.0)), _CONTEXT_KNOTS)
        rows = []
        for weight in _WEIGHTS:
            base = fixed_s * (1 / seqs + weight) - weight * demand.tpot_s
            slope = context_s * (1 + weight * seqs)
            least = np.min(base[None, :] + slope[None, :] * knots[:, None], axis=1)
            at_ends = np.interp(demand.prompt, knots, least) + np.interp(last, knots, least)
            rows.append((demand.output - 1.0) * at_ends / 2)
        return np.array(rows)


def lanes(pool: PoolSpec) -> float:
    """Count the batches that a pool works on at one time: one for each pipeline stage of each worker."""
    return float(pool.replicas * pool.pipeline_parallel)
