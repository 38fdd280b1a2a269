"""Where each worker goes: from the pools and the nodes to one placement group per worker.

Owns the arithmetic only; pure, so that it can be said before anything starts. Must not know Ray's API: nodes come in
as values, bundles and node ids go out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.config.models import BatonConfig, PoolConfig
from core.config.specs import gpus_per_worker, pool_config
from core.errors import ConfigError
from core.types import Role

CONVENTION = {Role.PREFILL: "prefill_capable", Role.DECODE: "decode_capable"}
MARK_SHARE = 0.001  # of a node's custom resource: enough to require it, too little to use it up
GPU_KIND = "accelerator_type:"  # begins the resource that tells what GPUs a node of Ray has
_SLACK = 1e-6  # resources are floats to Ray


@dataclass(frozen=True, slots=True)
class Node:
    """One alive Ray node, with what it has and what of it is free."""

    node_id: str
    address: str  # IP address
    total: Mapping[str, float]
    free: Mapping[str, float]
    process_address: str = ""  # host:port where Ray's process of the node listens; empty: not known


@dataclass(frozen=True, slots=True)
class WorkerPlacement:
    """One worker, the resources of its placement group's only bundle, and the node it goes to."""

    worker_id: str
    role: Role
    node_id: str
    address: str  # IP address of the node
    cpus: float
    gpus: int
    bundle: dict[str, float] = field(hash=False)


@dataclass(frozen=True, slots=True)
class _Ask:
    """What one worker of a pool needs."""

    role: Role
    index: int
    cpus: float
    gpus: int
    mark: str | None  # custom resource its node must carry

    @property
    def bundle(self) -> dict[str, float]:
        asked = {"CPU": self.cpus, "GPU": float(self.gpus)}
        if self.mark:
            asked[self.mark] = MARK_SHARE
        # Ray refuses an empty bundle: a worker that asks for nothing takes a trace of CPU.
        return {name: amount for name, amount in asked.items() if amount > 0} or {"CPU": MARK_SHARE}


def gpu_kind(node: Node) -> str:
    """Say what GPUs a node has, e.g. "H100"; empty when it has none or does not tell."""
    kinds = sorted(name.removeprefix(GPU_KIND) for name in node.total if name.startswith(GPU_KIND))
    return kinds[0] if kinds and node.total.get("GPU", 0) > 0 else ""


def place_workers(
    config: BatonConfig, nodes: Sequence[Node], *, by_convention: bool = True
) -> tuple[WorkerPlacement, ...]:
    """Give every worker of both pools a node, those hardest to place first; return them ordered by pool and index.

    A pool whose `node_resource` is unset goes to nodes that carry `prefill_capable` or `decode_capable`, if any node
    does; without `by_convention`, to any node. Among nodes that fit, the one with most of what the worker needs free
    wins, so replicas spread; where that leaves no room for a worker, all are packed tightly instead.
    Raises ConfigError, naming pool, need and nodes, when a worker fits nowhere.
    """
    asks = _all_asks(config, nodes, by_convention=by_convention)
    near = config.ray.near
    spread, left_over = _place(asks, nodes, tightly=False, near=near)
    if left_over is not None:
        packed, still_left_over = _place(asks, nodes, tightly=True, near=near)
        if still_left_over is not None:
            raise ConfigError(_does_not_fit(left_over, pool_config(config, left_over.role), nodes, spread))
        spread = packed
    return tuple(spread[ask.role, ask.index] for ask in asks)


def place_one(
    config: BatonConfig,
    role: Role,
    worker_id: str,
    nodes: Sequence[Node],
    *,
    beside: Iterable[WorkerPlacement] = (),
    by_convention: bool = True,
) -> WorkerPlacement:
    """Give one more worker of a pool a node, by the rules of `place_workers`; `beside` are those there already.

    Raises ConfigError, naming pool, need and nodes, when it fits nowhere.
    """
    ask = _ask(config, role, nodes, by_convention=by_convention)
    placed, left_over = _place([ask], nodes, tightly=False, near=config.ray.near, beside=beside)
    if left_over is not None:
        raise ConfigError(_does_not_fit(ask, pool_config(config, role), nodes, placed))
    return replace(placed[role, 0], worker_id=worker_id)


def needed_bundles(
    config: BatonConfig, nodes: Sequence[Node], *, by_convention: bool = True
) -> tuple[Mapping[str, float], ...]:
    """List what every worker of both pools needs, for whoever makes nodes; by the rules of `place_workers`."""
    return tuple(ask.bundle for ask in _all_asks(config, nodes, by_convention=by_convention))


def needed_bundle(
    config: BatonConfig, role: Role, nodes: Sequence[Node], *, by_convention: bool = True
) -> Mapping[str, float]:
    """Say what one worker of a pool needs."""
    return _ask(config, role, nodes, by_convention=by_convention).bundle


def count_room(
    config: BatonConfig, role: Role, nodes: Sequence[Node], *, at_most: int, by_convention: bool = True
) -> int:
    """Count the workers that a pool could have more, up to `at_most`, each placed by the rules of `place_one`."""
    ask = _ask(config, role, nodes, by_convention=by_convention)
    placed, _ = _place([replace(ask, index=index) for index in range(at_most)], nodes, tightly=False)
    return len(placed)


def without_claims(nodes: Sequence[Node], placements: Iterable[WorkerPlacement]) -> tuple[Node, ...]:
    """Take from the nodes what workers hold or are about to hold there; Ray tells of it with a delay."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for placement in placements:
        held[placement.node_id].update(placement.bundle)
    return tuple(
        replace(
            node,
            free={
                name: min(amount, node.total.get(name, amount) - held[node.node_id].get(name, 0.0))
                for name, amount in node.free.items()
            },
        )
        for node in nodes
    )


def spare_cores(
    placement: WorkerPlacement, available: Sequence[int], taken: Iterable[int], *, is_alone: bool
) -> tuple[int, ...]:
    """Choose cores for one more worker of a node, by the rules of `assign_cores`; others there hold `taken`."""
    if placement.gpus or is_alone:
        return ()
    left = [core for core in available if core not in frozenset(taken)]
    count = max(int(placement.cpus), 1)
    return tuple(left[:count]) if len(left) >= count else ()


def _place(
    asks: Sequence[_Ask],
    nodes: Sequence[Node],
    *,
    tightly: bool,
    near: bool = False,
    beside: Iterable[WorkerPlacement] = (),
) -> tuple[dict[tuple[Role, int], WorkerPlacement], _Ask | None]:
    """Give each worker the fitting node with the most room, or `tightly` the least; the second item fits nowhere.

    With `near`, nodes whose workers of the other role are more than those of its own come first.
    """
    free = {node.node_id: dict(node.free) for node in nodes}
    placed: dict[tuple[Role, int], WorkerPlacement] = {}
    there = Counter((placement.node_id, placement.role) for placement in beside)
    for ask in sorted(asks, key=lambda a: (a.mark is None, -a.gpus, -a.cpus, a.index if near else 0)):
        fitting = [node for node in nodes if _fits(ask.bundle, free[node.node_id])]
        if near and fitting:
            lacking = {node.node_id: _lacking(there, node, ask.role) for node in fitting}
            fitting = [node for node in fitting if lacking[node.node_id] == max(lacking.values())]
        node = _best_node(ask, fitting, free, tightly=tightly)
        if node is None:
            return placed, ask
        for name, amount in ask.bundle.items():
            free[node.node_id][name] = free[node.node_id].get(name, 0) - amount
        there[node.node_id, ask.role] += 1
        placed[ask.role, ask.index] = WorkerPlacement(
            worker_id=f"{ask.role}-{ask.index}",
            role=ask.role,
            node_id=node.node_id,
            address=node.address,
            cpus=ask.cpus,
            gpus=ask.gpus,
            bundle=ask.bundle,
        )
    return placed, None


def assign_cores(workers: Sequence[WorkerPlacement], cores: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Give the workers without GPU that share a node cores of their own; return the cores by worker id.

    `cores` lists what each node lets its processes use, by node id. A worker gets as many as its whole `cpus`, at least
    one. Nobody is pinned on a node with one worker or with fewer cores than its workers need.
    """
    assigned: dict[str, tuple[int, ...]] = {}
    for node_id, available in cores.items():
        shared = [w for w in workers if w.node_id == node_id and w.gpus == 0]
        counts = [max(int(w.cpus), 1) for w in shared]
        if len(shared) < 2 or sum(counts) > len(available):
            continue
        begin = 0
        for worker, count in zip(shared, counts, strict=True):
            assigned[worker.worker_id] = tuple(available[begin : begin + count])
            begin += count
    return assigned


def _mark(pool: PoolConfig, role: Role, nodes: Sequence[Node], *, by_convention: bool) -> str | None:
    """Say which resource the nodes of a pool must carry."""
    is_used = by_convention and any(node.total.get(CONVENTION[role], 0) > 0 for node in nodes)
    return pool.node_resource or (CONVENTION[role] if is_used else None)


def _ask(config: BatonConfig, role: Role, nodes: Sequence[Node], *, by_convention: bool) -> _Ask:
    pool = pool_config(config, role)
    has_gpu = any(node.total.get("GPU", 0) > 0 for node in nodes)
    mark = _mark(pool, role, nodes, by_convention=by_convention)
    return _Ask(role, 0, pool.cpus, gpus_per_worker(pool, has_gpu=has_gpu), mark)


def _all_asks(config: BatonConfig, nodes: Sequence[Node], *, by_convention: bool) -> list[_Ask]:
    has_gpu = any(node.total.get("GPU", 0) > 0 for node in nodes)
    marks = {role: _mark(pool_config(config, role), role, nodes, by_convention=by_convention) for role in Role}
    return [ask for role in Role for ask in _asks(pool_config(config, role), role, marks[role], has_gpu=has_gpu)]


def _asks(pool: PoolConfig, role: Role, mark: str | None, *, has_gpu: bool) -> list[_Ask]:
    gpus = gpus_per_worker(pool, has_gpu=has_gpu)
    return [_Ask(role, index, pool.cpus, gpus, mark) for index in range(pool.replicas)]


def _best_node(
    ask: _Ask, fitting: Sequence[Node], free: Mapping[str, Mapping[str, float]], *, tightly: bool
) -> Node | None:
    scarce = "GPU" if ask.gpus else "CPU"
    choose = min if tightly else max
    return choose(fitting, key=lambda node: free[node.node_id].get(scarce, 0), default=None)


def _lacking(there: Mapping[tuple[str, Role], int], node: Node, role: Role) -> int:
    """Count the workers of the other role on a node that have no partner of `role` there."""
    other = Role.DECODE if role is Role.PREFILL else Role.PREFILL
    return max(0, there.get((node.node_id, other), 0) - there.get((node.node_id, role), 0))


def _fits(bundle: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0) >= amount - _SLACK for name, amount in bundle.items())


def _does_not_fit(
    ask: _Ask, pool: PoolConfig, nodes: Sequence[Node], placed: Mapping[tuple[Role, int], WorkerPlacement]
) -> str:
    needs = f"{ask.cpus:g} CPU" + (f", {ask.gpus} GPU" if ask.gpus else "")
    if ask.mark:
        needs += f" on a node with the resource {ask.mark!r}"
    before = ", ".join(sorted(w.worker_id for w in placed.values()))
    lines = [
        f"pools.{ask.role}: worker {ask.index + 1} of {pool.replicas} fits on no node of Ray: it needs {needs}"
        + (f", after {before} took theirs" if before else "")
    ]
    lines += [f"  node {node.address} has {_describe(node)}" for node in nodes] or ["  Ray has no node"]
    keys = f"pools.{ask.role}.replicas or .cpus" + (" or .gpus" if ask.gpus else "")
    lines.append(f"  lower {keys}, or give Ray a node that is large enough")
    return "\n".join(lines)


def _describe(node: Node) -> str:
    parts = [f"{node.free.get(name, 0):g} of {node.total.get(name, 0):g} {name} free" for name in ("CPU", "GPU")]
    known = ("CPU", "GPU", "memory", "object_store_memory")
    marks = [n for n in sorted(node.total) if n not in known and not n.startswith(("node:", GPU_KIND))]
    return ", ".join(parts) + (f", resources {', '.join(marks)}" if marks else "")
