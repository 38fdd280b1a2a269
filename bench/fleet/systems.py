"""The ways to run one cluster that are compared, and the pools each of them gets.

Owns the list. All run the same engine by the same profile and meet the same requests; only pools and routing differ.
Each way of others gets the pools that are best for it with the routing it is known for. Pools are chosen on the first
requests of the trace; its resamples are met unseen. Must not know how goodput is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Final

from bench.fleet import distserve
from bench.fleet.goodput import Judged, best_of
from bench.fleet.scenes import KV_GBIT_S, Scene
from core.policy.registry import policy_named
from sim.cluster import ClusterSpec, Mode, Routing, Rule
from sim.outcome import Outcome, Target
from sim.plan import Plan, PlanQuestion
from sim.policy_gear import context_of, simulate_with_policy
from sim.search import search
from sim.search.goodput import Simulate
from sim.search.placements import fits_of, one_pools, size_pairs, split, splits
from sim.search.referee import admitting, as_started, own_policy_rate
from sim.simulate import simulate
from sim.workload import Workload

ONE_POOL: Final = "one pool, chunked"
ONE_POOL_BATON: Final = "one pool, Baton's routing"
DISTSERVE: Final = "DistServe's placement"
BATON: Final = "P/D, Baton"
PEERS: Final = MappingProxyType(  # name and policy; the first three have a compiled rule that decides alike
    {
        "P/D, random": "random",
        "P/D, round robin": "round-robin",
        "P/D, least loaded": "least-loaded",
        "P/D, power of two": "power-of-two",
        "P/D, prefix affinity": "prefix-affinity",
    }
)
_RULES: Final = MappingProxyType(
    {"random": Rule.RANDOM, "round-robin": Rule.ROUND_ROBIN, "least-loaded": Rule.LEAST_LOADED}
)
_HINT_PER_GPU: Final = 2.0  # requests/s, where a search for the goodput begins


@dataclass(frozen=True, slots=True)
class System:
    """One way to run the devices; no cluster: it has no pools that keep the promise at all."""

    name: str
    cluster: ClusterSpec | None
    run: Simulate
    hint: float  # requests/s about which its goodput is looked for


@dataclass(frozen=True, slots=True)
class Entry:
    """All systems of a scene, and what the planner said of it."""

    systems: tuple[System, ...]
    plan: Plan


def enter(scene: Scene, workload: Workload, *, kv_gbit_s: float = KV_GBIT_S) -> Entry:
    """Choose everybody's pools on `workload`."""
    question = PlanQuestion((scene.fleet.group(kv_gbit_s),), scene.promise.targets, workload, seeds=(0,))
    plan = search(question, recheck=None, referee=own_policy_rate)
    peers = list(_peers(question))
    return Entry((*peers, *_ours(plan, max(peer.hint for peer in peers))), plan)


def routed(
    policy: str, cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0
) -> Outcome:
    """Simulate with one of the router's own policies, told of the cluster what a live router would be."""
    known = replace(
        context_of(cluster, targets, may_hold=True), mean_output_tokens=float(workload.output_tokens.mean())
    )
    return simulate_with_policy(cluster, workload, targets, policy_named(policy, known), seed=seed)


def _peers(question: PlanQuestion) -> Iterator[System]:
    """List what others would run, and how."""
    gpus, targets = question.groups[0].devices, question.targets
    plain = Routing(rule=Rule.LEAST_LOADED)
    judge = partial(Judged, targets=targets, run=simulate)
    hint = _HINT_PER_GPU * gpus
    pools = [p.routed(plain).cluster for p in one_pools(question, fits_of(question), gpus, above=gpus - 1)]
    best, rate = best_of(pools, judge, question.workload, hint)
    yield System(ONE_POOL, best if rate else None, simulate, rate)
    pairs = _splits(question, plain)
    unit = distserve.placement(
        pairs[0],
        [replace(p.decode, replicas=1) for p in {c.decode.tensor_parallel: c for c in pairs}.values()],
        gpus,
        question.workload,
        lambda cluster, work: judge(cluster).goodput(work, hint / gpus * cluster.gpus),
    )
    yield System(DISTSERVE, unit, simulate, rate or hint)
    best, rate = best_of(pairs, judge, question.workload, hint)
    for name, policy in PEERS.items():
        if policy == "prefix-affinity" and not len(question.workload.prefix_start):
            continue  # without shared prefixes it has nothing to go by
        rule = _RULES.get(policy)
        run = simulate if rule is not None else partial(routed, policy)
        cluster = best if rule is None else replace(best, routing=Routing(rule=rule))
        yield System(name, cluster if rate else None, run, rate)


def _ours(plan: Plan, hint: float) -> Iterator[System]:
    """List the planner's best of either family, with the router's own policy, which refuses what would be late."""
    for name, found in ((ONE_POOL_BATON, plan.best_one_pool), (BATON, plan.best_disaggregated)):
        kept = found is not None and found.goodput.mid > 0
        yield System(name, admitting(found.cluster) if found and kept else None, as_started, hint)


def _splits(question: PlanQuestion, routing: Routing) -> list[ClusterSpec]:
    """List the clusters of all devices with a prefill and a decode pool of one parallel size."""
    gpus = question.groups[0].devices
    return [
        placement.routed(routing).cluster
        for pair in size_pairs(question, fits_of(question))
        for x, y in splits(question, pair, gpus, above=gpus - 1)
        for placement in split(question, Mode.DISAGGREGATED, pair, x, y)
        if placement.copies == 1
    ]


def described(cluster: ClusterSpec) -> str:
    """Say in a few words which pools a cluster has."""
    decode, prefill = cluster.decode, cluster.prefill
    if prefill is None:
        return f"{decode.replicas} x tp{decode.tensor_parallel}, chunk {decode.max_num_batched_tokens:,}"
    return f"{prefill.replicas} x tp{prefill.tensor_parallel} P + {decode.replicas} x tp{decode.tensor_parallel} D"
