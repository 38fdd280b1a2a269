"""The recorded past as a case for the simulator, and the same with something changed.

Owns what of a recording makes the cluster, the policy and the promise, and the words that change them. Routed by the
router's own policy, with the costs that the router had learnt. Must not know how the answer is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from core.errors import ConfigError
from core.latency.profile import EngineProfile
from core.latency.step import StepCost
from core.policy.context import ClassTarget, PolicyContext, PoolFacts
from core.policy.registry import POLICIES, policy_named
from core.recording import RecordedWorker
from core.types import Role
from sim.cluster import ClusterSpec, LinkSpec, Mode, Outage, PoolSpec, Routing
from sim.outcome import Outcome, Target
from sim.policy_gear import simulate_with_policy
from sim.recording import Recording
from sim.workload import Workload

NUMBERS: Final[Mapping[str, tuple[int, int]]] = {  # what --set may change, and its range
    "prefill": (0, 4096),
    "decode": (1, 4096),
    "chunk": (32, 1 << 20),
    "seqs": (1, 65536),
    "whole_below": (0, 1 << 24),
}
_PROMISE: Final = {"ttft_ms": ("ttft_s", 1000.0), "tpot_ms": ("tpot_s", 1000.0), "attainment": ("attainment", 1.0)}
_LAYERS: Final = 32  # of a model whose link does not say what is sent when prefill has ended
_FOREVER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class Changes:
    """What is asked to be different."""

    numbers: Mapping[str, int]
    policy: str | None = None
    promise: Mapping[tuple[str, str], float] | None = None  # by class and key of _PROMISE
    killed: tuple[str, ...] = ()
    traffic: float = 1.0  # times the recorded rate

    @property
    def are_none(self) -> bool:
        """Nothing is asked to be different."""
        return not (self.numbers or self.policy or self.promise or self.killed) and self.traffic == 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A cluster, what arrives there, and who routes it."""

    cluster: ClusterSpec
    workload: Workload
    policy: str
    context: PolicyContext
    worker_ids: tuple[str, ...]  # prefill workers first, as outages count them
    span_s: float

    @property
    def targets(self) -> tuple[Target, ...]:
        """The promise, in the order that the workload's classes are numbered in."""
        return tuple(Target(n, t.ttft_s, t.tpot_s, t.attainment) for n, t in self.context.targets.items())

    def run(self) -> Outcome:
        """Simulate it."""
        policy = policy_named(self.policy, self.context)
        return simulate_with_policy(self.cluster, self.workload, self.targets, policy)

    @property
    def device_hours(self) -> float:
        """What the workers took, the time aside that one was not there."""
        prefill, decode = self.cluster.prefill, self.cluster.decode
        devices = [prefill.tensor_parallel] * prefill.replicas if prefill else []
        devices += [decode.tensor_parallel] * decode.replicas
        hours = sum(devices) * self.span_s
        for outage in self.cluster.outages:
            gone_s = min(outage.until_s, self.span_s) - min(outage.from_s, self.span_s)
            hours -= devices[outage.worker] * gone_s
        return hours / 3600


def case_of(recording: Recording, profile: EngineProfile | None = None) -> Case:
    """Make the case of a recording as it was; with a profile its costs count instead of those that were learnt.

    Raises ConfigError when there is no cost, no decode worker, or a class that the promise does not have.
    """
    workers = recording.workers()
    context = _with_costs(recording, workers, profile)
    classes = tuple(context.targets)
    strange = sorted({r.slo_class for r in recording.requests} - set(classes))
    if strange:
        raise ConfigError(
            f"the recording has requests of class {', '.join(strange)}, which its setting does not promise"
        )
    of_role = {role: [w for w in workers if w.role is role] for role in Role}
    prefill, decode = of_role[Role.PREFILL], of_role[Role.DECODE]
    if not decode:
        raise ConfigError("the recording shows no decode worker; take a window in which one was connected")
    ids = tuple(w.worker_id for w in (*prefill, *decode))
    outages = tuple(o for place, worker_id in enumerate(ids) for o in recording.absences(worker_id, place=place))
    workload = recording.workload(classes)
    link = context.link
    cluster = ClusterSpec(
        mode=Mode.HYBRID if prefill else Mode.ONE_POOL_CHUNKED,
        decode=_pool(context.pools[Role.DECODE], decode),
        prefill=_pool(context.pools[Role.PREFILL], prefill) if prefill else None,
        link=LinkSpec(
            bytes_per_s=1 / link.s_per_token if link.s_per_token else float("inf"),
            latency_s=link.latency_s,
            kv_bytes_per_token=1,
            layers=round(1 / link.tail_share) if link.tail_share else _LAYERS,
        ),
        routing=Routing(whole_below_tokens=context.whole_below_tokens, overflow=context.overflow),
        block_size=decode[0].block_size,
        prefix_cache=bool(len(workload.prefix_start)),
        request_overhead_s=context.request_overhead_s,
        handover_overhead_s=context.handover_overhead_s,
        outages=outages,
    )
    return Case(cluster, workload, recording.setting.policy, context, ids, recording.until_s - recording.from_s)


def changed(case: Case, changes: Changes) -> Case:
    """Change a case. Raises ConfigError for a worker or class that it does not have."""
    case = _resized(case, changes.numbers)
    context = case.context
    for (name, key), value in (changes.promise or {}).items():
        target = context.targets.get(name)
        if target is None:
            raise ConfigError(f"--slo {name}.{key}: there is no class {name!r}; there are {', '.join(context.targets)}")
        context = replace(context, targets={**context.targets, name: _promised(target, key, value)})
    if "whole_below" in changes.numbers:
        context = replace(context, whole_below_tokens=changes.numbers["whole_below"])
    workload = case.workload
    if changes.traffic != 1.0:
        workload = replace(workload, arrived_s=workload.arrived_s / changes.traffic)
        case = replace(case, span_s=case.span_s / changes.traffic)
    outages = case.cluster.outages
    for worker_id in changes.killed:
        if worker_id not in case.worker_ids:
            raise ConfigError(f"--kill {worker_id}: there is no such worker; there are {', '.join(case.worker_ids)}")
        outages = (*outages, Outage(case.worker_ids.index(worker_id), 0.0, _FOREVER_S))
    cluster = replace(case.cluster, outages=outages)
    return replace(case, cluster=cluster, context=context, workload=workload, policy=changes.policy or case.policy)


def _resized(case: Case, numbers: Mapping[str, int]) -> Case:
    """Give pools other sizes and steps; workers that are added are like the others of their pool."""
    cluster, ids = case.cluster, case.worker_ids
    num_prefill = cluster.prefill.replicas if cluster.prefill else 0
    prefill_ids = _named("prefill", ids[:num_prefill], numbers.get("prefill", num_prefill))
    decode_ids = _named("decode", ids[num_prefill:], numbers.get("decode", cluster.decode.replicas))
    decode = _stepped(replace(cluster.decode, replicas=len(decode_ids)), numbers)
    like = cluster.prefill or replace(decode, cost=_cost(case.context, Role.PREFILL))
    prefill = _stepped(replace(like, replicas=len(prefill_ids)), numbers) if prefill_ids else None
    new_ids = (*prefill_ids, *decode_ids)
    kept = [outage for outage in cluster.outages if ids[outage.worker] in new_ids]
    cluster = replace(
        cluster,
        mode=Mode.HYBRID if prefill else Mode.ONE_POOL_CHUNKED,
        decode=decode,
        prefill=prefill,
        outages=tuple(replace(outage, worker=new_ids.index(ids[outage.worker])) for outage in kept),
    )
    facts = {
        role: replace(
            given,
            max_num_seqs=numbers.get("seqs", given.max_num_seqs),
            max_num_batched_tokens=numbers.get("chunk", given.max_num_batched_tokens),
        )
        for role, given in case.context.pools.items()
    }
    return replace(case, cluster=cluster, worker_ids=new_ids, context=replace(case.context, pools=facts))


def _stepped(pool: PoolSpec, numbers: Mapping[str, int]) -> PoolSpec:
    """Give the steps of a pool other limits."""
    return replace(
        pool,
        max_num_seqs=numbers.get("seqs", pool.max_num_seqs),
        max_num_batched_tokens=numbers.get("chunk", pool.max_num_batched_tokens),
    )


def _named(role: str, ids: Sequence[str], count: int) -> tuple[str, ...]:
    """Keep the first workers, and name those that are added after the highest number so far."""
    added = max((int(i.rpartition("-")[2]) for i in ids if i.rpartition("-")[2].isdecimal()), default=-1) + 1
    return (*ids[:count], *(f"{role}-{added + number}" for number in range(count - len(ids))))


def _promised(target: ClassTarget, key: str, value: float) -> ClassTarget:
    field, scale = _PROMISE[key]
    return replace(target, **{field: value / scale})  # type: ignore[arg-type]


def _with_costs(
    recording: Recording, workers: Sequence[RecordedWorker], profile: EngineProfile | None
) -> PolicyContext:
    """Take the latest context that knows what steps cost; a role whose workers never ran takes the other's."""
    context = recording.setting.context
    if profile is not None:
        shape = profile.shape(workers[0].devices if workers else 1, 1)
        known = dict.fromkeys(Role, shape.cost)
    else:
        with_costs = [s.context for s in recording.settings if any(f.cost for f in s.context.pools.values())]
        if not with_costs:
            raise ConfigError(
                "the recording does not tell what the workers' steps cost, for too few were seen; give --profile FILE "
                "(`baton profile` writes one), or let it go on for longer"
            )
        context = replace(context, pools=with_costs[-1].pools)
        known = {role: _cost(context, role) for role in Role}
    facts = {role: context.pools.get(role, PoolFacts(None)) for role in Role}
    return replace(context, pools={role: replace(facts[role], cost=known[role]) for role in Role})


def _cost(context: PolicyContext, role: Role) -> StepCost:
    own = context.pools.get(role)
    found = own.cost if own is not None and own.cost is not None else None
    found = found or next(facts.cost for facts in context.pools.values() if facts.cost is not None)
    return found


def _pool(facts: PoolFacts, workers: Sequence[RecordedWorker]) -> PoolSpec:
    assert facts.cost is not None, "costs are filled in"
    return PoolSpec(
        replicas=len(workers),
        cost=facts.cost,
        kv_capacity_tokens=min(w.kv_blocks * w.block_size for w in workers),
        tensor_parallel=workers[0].devices,
        max_num_seqs=facts.max_num_seqs,
        max_num_batched_tokens=facts.max_num_batched_tokens,
        chunked=facts.chunked,
    )


def changes_of(
    settings: Sequence[str], promises: Sequence[str], killed: Sequence[str], *, traffic: float = 1.0
) -> Changes:
    """Read the words of the flags. Raises ConfigError that names the flag and what to write."""
    numbers: dict[str, int] = {}
    policy = None
    for part in (part.strip() for text in settings for part in text.split(",") if part.strip()):
        key, _, value = part.partition("=")
        if key == "policy" and value in POLICIES:
            policy = value
        elif key == "policy":
            raise ConfigError(f"--set {part}: policy is one of {', '.join(sorted(POLICIES))}")
        elif key not in NUMBERS:
            known = ", ".join((*NUMBERS, "policy"))
            raise ConfigError(f"--set {part}: write KEY=VALUE with a key of {known}, e.g. decode=3")
        else:
            numbers[key] = _number(part, key, value)
    if not traffic > 0 or traffic > 1000:
        raise ConfigError(f"--traffic {traffic:g}: write how many times as much, above 0, e.g. 1.5")
    promise = dict(_promise_word(text) for text in promises)
    return Changes(numbers, policy, promise or None, tuple(killed), traffic)


def _number(part: str, key: str, value: str) -> int:
    least, most = NUMBERS[key]
    number = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else -1
    if not least <= number <= most:
        raise ConfigError(f"--set {part}: {key} is a whole number from {least} to {most}, e.g. {key}={max(3, least)}")
    return number


def _promise_word(text: str) -> tuple[tuple[str, str], float]:
    name, _, rest = text.partition(".")
    key, _, number = rest.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if key not in _PROMISE or not value > 0 or (key == "attainment" and value > 1) or value > 1e9:
        keys = ", ".join(_PROMISE)
        raise ConfigError(f"--slo {text}: write CLASS.KEY=VALUE with a key of {keys}, e.g. interactive.ttft_ms=300")
    return (name, key), value
