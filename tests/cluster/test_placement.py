"""Where workers go, for nodes given as values."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import (
    Node,
    WorkerPlacement,
    assign_cores,
    count_room,
    gpu_kind,
    place_one,
    place_workers,
    spare_cores,
    without_claims,
)
from core.config.models import BatonConfig, PoolConfig, PoolsConfig, RayConfig
from core.errors import ConfigError
from core.types import Role


def node(name: str, total: Mapping[str, float], free: Mapping[str, float] | None = None) -> Node:
    return Node(node_id=name, address=f"10.0.0.{name[-1]}", total=total, free=total if free is None else free)


def config(prefill: PoolConfig | None = None, decode: PoolConfig | None = None) -> BatonConfig:
    return BatonConfig(pools=PoolsConfig(prefill=prefill or PoolConfig(), decode=decode or PoolConfig()))


def where(placements: tuple[WorkerPlacement, ...]) -> dict[str, str]:
    return {p.worker_id: p.node_id for p in placements}


def test_one_worker_of_each_pool_on_a_laptop() -> None:
    placed = place_workers(config(), [node("n1", {"CPU": 2.0})])
    assert placed == (
        WorkerPlacement("prefill-0", Role.PREFILL, "n1", "10.0.0.1", 1.0, 0, {"CPU": 1.0}),
        WorkerPlacement("decode-0", Role.DECODE, "n1", "10.0.0.1", 1.0, 0, {"CPU": 1.0}),
    )


def test_replicas_spread_over_equal_nodes() -> None:
    nodes = [node("n1", {"CPU": 4.0}), node("n2", {"CPU": 4.0})]
    placed = place_workers(config(PoolConfig(replicas=2), PoolConfig(replicas=2)), nodes)
    assert sorted(where(placed).values()) == ["n1", "n1", "n2", "n2"]
    assert where(placed)["prefill-0"] != where(placed)["prefill-1"]


def test_pools_go_to_nodes_that_carry_their_resource_by_convention() -> None:
    nodes = [
        node("n1", {"CPU": 8.0, "decode_capable": 1.0}),
        node("n2", {"CPU": 8.0, "prefill_capable": 1.0}),
        node("n3", {"CPU": 64.0}),
    ]
    placed = place_workers(config(), nodes)
    assert where(placed) == {"prefill-0": "n2", "decode-0": "n1"}
    assert placed[0].bundle == {"CPU": 1.0, "prefill_capable": 0.001}


def test_a_resource_named_in_the_pool_replaces_the_convention() -> None:
    nodes = [node("n1", {"CPU": 8.0, "prefill_capable": 1.0}), node("n2", {"CPU": 8.0, "fast": 1.0})]
    placed = place_workers(config(PoolConfig(node_resource="fast")), nodes)
    assert where(placed)["prefill-0"] == "n2"


def test_a_pool_without_mark_goes_anywhere_when_only_the_other_is_marked() -> None:
    nodes = [node("n1", {"CPU": 2.0, "prefill_capable": 1.0}), node("n2", {"CPU": 8.0})]
    assert where(place_workers(config(), nodes)) == {"prefill-0": "n1", "decode-0": "n2"}


def test_without_the_convention_marked_nodes_are_for_everybody() -> None:
    nodes = [node("n1", {"CPU": 1.0, "decode_capable": 1.0}), node("n2", {"CPU": 2.0, "decode_capable": 1.0})]
    asked = config(PoolConfig(cpus=2), PoolConfig(node_resource="decode_capable"))
    assert where(place_workers(asked, nodes, by_convention=False)) == {"prefill-0": "n2", "decode-0": "n1"}


def test_gpus_follow_the_parallelism_where_any_exist() -> None:
    nodes = [node("n1", {"CPU": 32.0, "GPU": 8.0})]
    pool = PoolConfig(tensor_parallel=4)
    placed = place_workers(config(pool, pool), nodes)
    assert [(p.gpus, p.bundle) for p in placed] == [(4, {"CPU": 1.0, "GPU": 4.0})] * 2


def test_a_parallel_group_does_not_span_nodes() -> None:
    nodes = [node("n1", {"CPU": 32.0, "GPU": 2.0}), node("n2", {"CPU": 32.0, "GPU": 2.0})]
    with pytest.raises(ConfigError, match=r"pools\.prefill: worker 1 of 1 fits on no node") as raised:
        place_workers(config(PoolConfig(tensor_parallel=4), PoolConfig(gpus=0)), nodes)
    assert "it needs 1 CPU, 4 GPU" in str(raised.value)
    assert "node 10.0.0.2 has 32 of 32 CPU free, 2 of 2 GPU free" in str(raised.value)


def test_the_large_worker_finds_its_node_before_the_small_ones_fill_it() -> None:
    nodes = [node("n1", {"CPU": 4.0}), node("n2", {"CPU": 2.0})]
    placed = place_workers(config(PoolConfig(replicas=2), PoolConfig(cpus=4)), nodes)
    assert where(placed) == {"prefill-0": "n2", "prefill-1": "n2", "decode-0": "n1"}


def test_workers_of_unlike_sizes_are_packed_where_spreading_them_leaves_no_room() -> None:
    nodes = [node("n1", {"CPU": 4.0}), node("n2", {"CPU": 3.0})]
    placed = place_workers(config(PoolConfig(cpus=3), PoolConfig(replicas=2, cpus=2)), nodes)
    assert where(placed) == {"prefill-0": "n2", "decode-0": "n1", "decode-1": "n1"}


def test_one_pool_has_decode_workers_only() -> None:
    placed = place_workers(config(PoolConfig(replicas=0, gpus=9), PoolConfig(replicas=2)), [node("n1", {"CPU": 2.0})])
    assert [p.worker_id for p in placed] == ["decode-0", "decode-1"]


def test_the_kind_of_gpu_is_what_ray_says_of_a_node_that_has_one() -> None:
    assert gpu_kind(node("n1", {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0})) == "H100"
    assert gpu_kind(node("n1", {"CPU": 8.0, "accelerator_type:TPU-V4": 1.0})) == ""
    assert gpu_kind(node("n1", {"CPU": 8.0, "GPU": 1.0})) == ""


def test_what_others_use_is_not_given_twice() -> None:
    busy = node("n1", {"CPU": 4.0}, free={"CPU": 1.0})
    with pytest.raises(ConfigError, match=r"after prefill-0 took theirs\n  node 10\.0\.0\.1 has 1 of 4 CPU free"):
        place_workers(config(), [busy])


def test_a_missing_resource_is_named() -> None:
    with pytest.raises(ConfigError, match="on a node with the resource 'fast'"):
        place_workers(config(PoolConfig(node_resource="fast")), [node("n1", {"CPU": 8.0})])


def test_no_node_at_all() -> None:
    with pytest.raises(ConfigError, match="Ray has no node"):
        place_workers(config(), [])


def test_a_worker_that_asks_for_nothing_still_has_a_bundle() -> None:
    placed = place_workers(config(PoolConfig(cpus=0)), [node("n1", {"CPU": 1.0 + 0.001})])
    assert placed[0].bundle == {"CPU": 0.001}


@given(
    replicas=st.tuples(st.integers(0, 5), st.integers(1, 5)),
    cpus=st.tuples(st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.sampled_from([0.5, 1.0, 3.0])),
    nodes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
)
def test_no_node_gives_more_than_it_has(replicas: tuple[int, int], cpus: tuple[float, float], nodes: list[int]) -> None:
    asked = config(PoolConfig(replicas=replicas[0], cpus=cpus[0]), PoolConfig(replicas=replicas[1], cpus=cpus[1]))
    given_nodes = [node(f"n{i}", {"CPU": float(n)}) for i, n in enumerate(nodes)]
    try:
        placed = place_workers(asked, given_nodes)
    except ConfigError:
        return
    assert len({p.worker_id for p in placed}) == sum(replicas)
    for one in given_nodes:
        assert sum(p.bundle["CPU"] for p in placed if p.node_id == one.node_id) <= one.total["CPU"] + 1e-6


@given(
    workers=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=9),
    sizes=st.tuples(st.sampled_from([1.0, 2.0]), st.sampled_from([1.0, 2.0])),
)
def test_powers_of_two_that_fit_at_all_find_their_place(
    workers: list[tuple[bool, int]], sizes: tuple[float, float]
) -> None:
    """Nodes are made to hold the workers exactly; sizes that divide each other can always be packed, largest first."""
    of_decode = [int(is_decode) for is_decode, _ in workers]
    room = [sum(sizes[d] for d, (_, at) in zip(of_decode, workers, strict=True) if at == n) for n in range(4)]
    pools = [PoolConfig(replicas=of_decode.count(d), cpus=sizes[d]) for d in (0, 1)]
    nodes = [node(f"n{i}", {"CPU": cpus}) for i, cpus in enumerate(room)]
    assert len(place_workers(config(*pools), nodes)) == len(workers)


def worker(name: str, node_id: str = "n1", cpus: float = 1.0, gpus: int = 0) -> WorkerPlacement:
    return WorkerPlacement(name, Role.PREFILL, node_id, "10.0.0.1", cpus, gpus, {})


def test_workers_of_one_node_get_cores_of_their_own() -> None:
    workers = [worker("a", cpus=2.0), worker("b", cpus=0.5), worker("c", "n2"), worker("d", gpus=1)]
    assert assign_cores(workers, {"n1": (0, 2, 4, 6), "n2": (0, 1)}) == {"a": (0, 2), "b": (4,)}


def test_nobody_is_pinned_on_a_node_with_too_few_cores() -> None:
    assert assign_cores([worker("a"), worker("b"), worker("c")], {"n1": (0, 1)}) == {}


def test_near_pools_share_nodes() -> None:
    nodes = [node("n1", {"CPU": 4.0}), node("n2", {"CPU": 4.0})]
    pools = PoolsConfig(prefill=PoolConfig(replicas=2), decode=PoolConfig(replicas=2))
    placed = where(place_workers(BatonConfig(pools=pools, ray=RayConfig(near=True)), nodes))
    assert placed["prefill-0"] == placed["decode-0"] != placed["prefill-1"] == placed["decode-1"]


def test_near_does_not_keep_a_worker_from_a_place() -> None:
    nodes = [node("n1", {"CPU": 1.0}), node("n2", {"CPU": 1.0})]
    placed = place_workers(BatonConfig(ray=RayConfig(near=True)), nodes)
    assert sorted(where(placed).values()) == ["n1", "n2"]


def test_one_more_worker_goes_where_most_is_free_beside_what_is_held() -> None:
    nodes = [node("n1", {"CPU": 4.0}), node("n2", {"CPU": 3.0})]
    held = place_workers(config(PoolConfig(replicas=0), PoolConfig(replicas=1, cpus=2)), nodes)
    assert where(held) == {"decode-0": "n1"}
    left = without_claims(nodes, held)  # Ray has not told of it yet
    assert [n.free["CPU"] for n in left] == [2.0, 3.0]
    placed = place_one(config(), Role.DECODE, "decode-7", left)
    assert (placed.worker_id, placed.role, placed.node_id) == ("decode-7", Role.DECODE, "n2")


def test_what_ray_has_told_of_is_not_taken_off_twice() -> None:
    held = place_workers(config(PoolConfig(replicas=0), PoolConfig(cpus=2)), [node("n1", {"CPU": 4.0})])
    (left,) = without_claims([node("n1", {"CPU": 4.0}, {"CPU": 2.0})], held)
    assert left.free == {"CPU": 2.0}


def test_one_more_worker_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pools\.decode: worker 1 of 1 fits on no node of Ray: it needs 1 CPU"):
        place_one(config(), Role.DECODE, "decode-1", [node("n1", {"CPU": 0.5})])


@given(
    st.integers(0, 12),
    st.floats(0.1, 3.0),
    st.lists(st.integers(0, 8), max_size=4),
    st.lists(st.integers(0, 3), max_size=9),
)
def test_room_is_as_many_as_can_be_placed_one_by_one(
    at_most: int, cpus: float, sizes: list[int], held_by: list[int]
) -> None:
    nodes = [node(f"n{i}", {"CPU": size}) for i, size in enumerate(sizes)]
    held = [worker(f"w{i}", f"n{i_node}") for i, i_node in enumerate(held_by) if i_node < len(nodes)]
    settings = config(decode=PoolConfig(cpus=cpus))
    count = 0
    while count < at_most:
        try:
            held.append(place_one(settings, Role.DECODE, "", without_claims(nodes, held)))
        except ConfigError:
            break
        count += 1
    free = without_claims(nodes, held[: len(held) - count])
    assert count_room(settings, Role.DECODE, free, at_most=at_most) == count


def test_one_more_worker_near_a_lonely_one_joins_it() -> None:
    nodes = [node("n1", {"CPU": 2.0}), node("n2", {"CPU": 8.0})]
    near = BatonConfig(ray=RayConfig(near=True))
    lonely = WorkerPlacement("prefill-0", Role.PREFILL, "n1", "10.0.0.1", 1.0, 0, {"CPU": 1.0})
    assert place_one(near, Role.DECODE, "decode-0", nodes, beside=[lonely]).node_id == "n1"
    assert place_one(near, Role.PREFILL, "prefill-1", nodes, beside=[lonely]).node_id == "n2"


def test_one_more_worker_gets_cores_that_nobody_has() -> None:
    (placed,) = place_workers(config(PoolConfig(replicas=0), PoolConfig(cpus=2)), [node("n1", {"CPU": 4.0})])
    assert spare_cores(placed, range(4), [0, 3], is_alone=False) == (1, 2)
    assert spare_cores(placed, range(4), [0, 1, 3], is_alone=False) == ()
    assert spare_cores(placed, range(4), [], is_alone=True) == ()
