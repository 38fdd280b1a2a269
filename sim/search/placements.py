"""Which clusters fit the devices: every mode, parallel size and split, with the way that the KV cache goes.

Owns what fits: memory, nodes, links and price. Must not know how well a placement does (sim.search.bounds, goodput).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from core.latency.profile import ShapeProfile
from sim.cluster import ClusterSpec, LinkSpec, Mode, PoolSpec, Routing
from sim.plan import DeviceGroup, PlanQuestion

EVERY_SPLIT_UP_TO = 16  # splits of a budget; of more, only those near the analytic optimum, then their neighbours
ONE_POOL_MODES = frozenset({Mode.ONE_POOL, Mode.ONE_POOL_CHUNKED})
DEFAULT_CHUNK_TOKENS = 2048  # vLLM's own default of max_num_batched_tokens for serving (vllm/engine/arg_utils.py)


@dataclass(frozen=True, slots=True)
class Placement:
    """One cluster that fits, with the routing that it starts from."""

    cluster: ClusterSpec
    group: tuple[int, ...]  # index into the groups: of prefill and decode, or of the one pool
    price_per_hour: float
    nodes_spanned: bool = False  # the KV goes between nodes
    copies: int = 1  # the cluster is so many equal units, each in a node of its own, that share only the router

    @property
    def unit(self) -> ClusterSpec:
        """The part that is simulated, at its share of the rate."""
        if self.copies == 1:
            return self.cluster
        cluster, prefill = self.cluster, self.cluster.prefill
        return replace(
            cluster,
            decode=replace(cluster.decode, replicas=cluster.decode.replicas // self.copies),
            prefill=prefill and replace(prefill, replicas=prefill.replicas // self.copies),
        )

    def routed(self, routing: Routing) -> Placement:
        """Return the same placement with another routing."""
        return replace(self, cluster=replace(self.cluster, routing=routing))


@dataclass(frozen=True, slots=True)
class Fit:
    """A parallel size of a group that holds the workload's longest prompt, and how many workers of it fit."""

    group: int
    shape: ShapeProfile
    most: int


def fits_of(question: PlanQuestion) -> tuple[Fit, ...]:
    """List the usable parallel sizes of every group."""
    longest = int(question.workload.prompt_tokens.max(initial=1)) + 1
    return tuple(
        Fit(index, shape, most)
        for index, group in enumerate(question.groups)
        for shape in group.profile.shapes
        if shape.kv_capacity_tokens >= longest and (most := most_workers(group, shape)) > 0
    )


def most_workers(group: DeviceGroup, shape: ShapeProfile) -> int:
    """Count the workers of one size that a group holds; the devices of a tensor-parallel stage share a node."""
    if shape.gpus <= group.devices_per_node:
        return group.nodes * (group.devices_per_node // shape.gpus)
    return group.nodes * (group.devices_per_node // shape.tensor_parallel) // shape.pipeline_parallel


def fit_together(group: DeviceGroup, demands: Sequence[tuple[ShapeProfile, int]]) -> bool:
    """Say whether so many workers of each size fit the nodes, largest workers placed first."""
    free = [group.devices_per_node] * group.nodes
    stages = sorted(
        ((shape.gpus, 1) if shape.gpus <= group.devices_per_node else (shape.tensor_parallel, shape.pipeline_parallel))
        + (count,)
        for shape, count in demands
    )
    for devices, pieces, count in reversed(stages):
        left = pieces * count
        for node, room in enumerate(free):
            taken = min(left, room // devices)
            free[node] -= taken * devices
            left -= taken
        if left:
            return False
    return True


def one_pools(question: PlanQuestion, fits: Sequence[Fit], price: float, *, above: float) -> Iterator[Placement]:
    """List the largest one-pool clusters that cost at most `price` and more than `above`: by mode, size and chunk."""
    for mode, fit in product(question.modes, fits):
        if mode not in ONE_POOL_MODES:
            continue
        group = question.groups[fit.group]
        each = fit.shape.gpus * group.price_per_hour
        count = min(fit.most, whole(price / each))
        if count < 1 or count * each <= above * (1 + 1e-9):
            continue
        chunks = question.chunk_tokens if mode is Mode.ONE_POOL_CHUNKED else (whole_prompts(question),)
        for chunk in chunks:
            pool = _pool(question, fit, count, chunk)
            cluster = _cluster(question, group, mode, pool, None, group.inner_link)
            yield Placement(cluster, (fit.group,), count * each)


def splits(question: PlanQuestion, pair: tuple[Fit, Fit], price: float, *, above: float) -> list[tuple[int, int]]:
    """List the (prefill, decode) workers that use up `price`, cost more than `above`, and fit; by decode workers."""
    first, second = pair
    p_each = first.shape.gpus * question.groups[first.group].price_per_hour
    d_each = second.shape.gpus * question.groups[second.group].price_per_hour
    found = []
    for y in range(1, min(second.most, whole(price / d_each)) + 1):
        x = min(first.most, whole((price - y * d_each) / p_each))
        if x >= 1 and x * p_each + y * d_each > above * (1 + 1e-9):
            found.append((x, y))
    return found


def levels(question: PlanQuestion) -> tuple[float, ...]:
    """List the budgets that are searched in turn: every price at first, then doublings, and the whole.

    But for the last they do not depend on how many devices there are, so that a plan for more devices comes by those
    for fewer.
    """
    sums = {0.0}
    for group in question.groups:
        most = group.devices
        steps = {i * group.price_per_hour for i in (*range(EVERY_SPLIT_UP_TO + 1), *_doubled(most), most) if i <= most}
        sums = {round(s + step, 9) for s in sums for step in steps}
    prices = sorted(sums - {0.0})
    kept = prices[:8]
    for price in prices[8:]:
        if price >= 2 * kept[-1] * (1 - 1e-9) or price == prices[-1]:
            kept.append(price)
    return tuple(kept)


def _doubled(most: int) -> Iterator[int]:
    step = EVERY_SPLIT_UP_TO
    while step <= most:
        yield step
        step *= 2


def whole(number: float) -> int:
    """Round down, forgiving the last bits of a division."""
    return int(number * (1 + 1e-9))


def whole_prompts(question: PlanQuestion) -> int:
    """Return a token limit of a step that splits no prompt and lets several short ones share a step."""
    return max(8192, int(question.workload.prompt_tokens.max(initial=1)))


def size_pairs(question: PlanQuestion, fits: Sequence[Fit]) -> tuple[tuple[Fit, Fit], ...]:
    """List the sizes that prefill and decode can take together."""
    return tuple(
        (p, d)
        for p, d in product(fits, fits)
        if not question.equal_parallelism
        or (p.shape.tensor_parallel, p.shape.pipeline_parallel) == (d.shape.tensor_parallel, d.shape.pipeline_parallel)
    )


def split(question: PlanQuestion, mode: Mode, pair: tuple[Fit, Fit], x: int, y: int) -> Iterator[Placement]:
    """List the ways to place x prefill and y decode workers: anywhere, or paired inside nodes (DistServe, 3.2)."""
    first, second = pair
    p_group, d_group = question.groups[first.group], question.groups[second.group]
    if first.group != second.group:
        fitting = x <= first.most and y <= second.most
        one_node = False
    else:
        fitting = fit_together(p_group, ((first.shape, x), (second.shape, y)))
        one_node = x * first.shape.gpus + y * second.shape.gpus <= p_group.devices_per_node
    if not fitting:
        return
    chunk = DEFAULT_CHUNK_TOKENS if mode is Mode.HYBRID else whole_prompts(question)
    prefill = _pool(question, first, x, whole_prompts(question))
    decode = _pool(question, second, y, chunk)
    price = prefill.gpus * p_group.price_per_hour + decode.gpus * d_group.price_per_hour
    link = p_group.inner_link if one_node else slower(p_group.outer_link, d_group.outer_link)
    cluster = _cluster(question, d_group, mode, decode, prefill, link)
    groups = (first.group, second.group)
    yield Placement(cluster, groups, price, nodes_spanned=not one_node)
    copies = 0 if one_node or first.group != second.group else _unit_copies(p_group, first.shape, second.shape, x, y)
    if copies > 1:
        yield Placement(replace(cluster, link=p_group.inner_link), groups, price, copies=copies)


def _unit_copies(group: DeviceGroup, prefill: ShapeProfile, decode: ShapeProfile, x: int, y: int) -> int:
    """Return into how few equal units x and y divide so that each fits in a node of its own; 0 when they do not."""
    for copies in range(2, group.nodes + 1):
        if x % copies or y % copies:
            continue
        if x // copies * prefill.gpus + y // copies * decode.gpus <= group.devices_per_node:
            return copies
    return 0


def slower(a: LinkSpec, b: LinkSpec) -> LinkSpec:
    """Return the link of lower bandwidth."""
    return a if a.bytes_per_s <= b.bytes_per_s else b


def _pool(question: PlanQuestion, fit: Fit, replicas: int, chunk: int) -> PoolSpec:
    return PoolSpec(
        replicas=replicas,
        cost=fit.shape.cost,
        kv_capacity_tokens=fit.shape.kv_capacity_tokens,
        tensor_parallel=fit.shape.tensor_parallel,
        pipeline_parallel=fit.shape.pipeline_parallel,
        max_num_seqs=question.max_num_seqs,
        max_num_batched_tokens=chunk,
        device=question.groups[fit.group].profile.device,
    )


def _cluster(
    question: PlanQuestion, group: DeviceGroup, mode: Mode, decode: PoolSpec, prefill: PoolSpec | None, link: LinkSpec
) -> ClusterSpec:
    profile = group.profile
    if not link.kv_bytes_per_token:
        link = replace(link, kv_bytes_per_token=profile.kv_bytes_per_token)
    return ClusterSpec(
        mode=mode,
        decode=decode,
        prefill=prefill,
        link=link,
        routing=Routing(overflow=mode is Mode.HYBRID),
        block_size=profile.block_size,
        prefix_cache=bool(len(question.workload.prefix_start)),
        request_overhead_s=profile.request_overhead_s,
        handover_overhead_s=profile.handover_overhead_s if prefill else 0.0,
    )
