"""What fits: devices, nodes, memory, parallel sizes and budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cluster import Mode
from sim.search.placements import fit_together, fits_of, levels, one_pools, size_pairs, split, splits
from tests.sim.search.queue_model import group, question, shape


def test_a_size_that_cannot_hold_the_longest_prompt_is_left_out() -> None:
    asked = question(group(shapes=(shape(capacity=100), shape(2, capacity=5_000))))
    assert [fit.shape.tensor_parallel for fit in fits_of(asked)] == [2]


def test_a_worker_stays_inside_a_node() -> None:
    asked = question(group(6, nodes=2))
    assert {fit.shape.tensor_parallel: fit.most for fit in fits_of(asked)} == {1: 6, 2: 2}
    assert not fit_together(asked.groups[0], ((shape(2), 3),))
    assert fit_together(asked.groups[0], ((shape(2), 2), (shape(), 2)))


def test_equal_parallelism_pairs_equal_sizes_only() -> None:
    unlike = question(equal_parallelism=False)
    alike = question(equal_parallelism=True)
    sizes = [(p.shape.tensor_parallel, d.shape.tensor_parallel) for p, d in size_pairs(unlike, fits_of(unlike))]
    assert sizes == [(1, 1), (1, 2), (2, 1), (2, 2)]
    sizes = [(p.shape.tensor_parallel, d.shape.tensor_parallel) for p, d in size_pairs(alike, fits_of(alike))]
    assert sizes == [(1, 1), (2, 2)]


def test_pairs_inside_nodes_use_the_inner_link_and_others_the_outer() -> None:
    asked = question(group(4, nodes=2))
    pair = size_pairs(asked, fits_of(asked))[0]
    inside = list(split(asked, Mode.DISAGGREGATED, pair, 1, 1))
    assert [(p.nodes_spanned, p.copies, p.cluster.link.bytes_per_s) for p in inside] == [(False, 1, 1e11)]
    across = list(split(asked, Mode.DISAGGREGATED, pair, 2, 2))
    assert [(p.nodes_spanned, p.copies, p.cluster.link.bytes_per_s) for p in across] == [
        (True, 1, 1e9),
        (False, 2, 1e11),
    ]
    assert len(list(split(asked, Mode.DISAGGREGATED, pair, 1, 3))) == 1  # does not divide into two equal units
    assert not list(split(asked, Mode.DISAGGREGATED, pair, 3, 2))


def test_unlike_groups_pair_over_the_slower_link_at_their_own_prices() -> None:
    asked = question(group(2, name="fast", price=3.0), group(2, name="slow", price=1.0))
    pair = next(p for p in size_pairs(asked, fits_of(asked)) if (p[0].group, p[1].group) == (0, 1))
    (placement,) = split(asked, Mode.DISAGGREGATED, pair, 1, 2)
    assert (placement.group, placement.price_per_hour, placement.nodes_spanned) == ((0, 1), 5.0, True)
    assert placement.cluster.prefill is not None
    assert (placement.cluster.prefill.device, placement.cluster.decode.device) == ("fast", "slow")
    assert placement.cluster.link.bytes_per_s == 1e9


def test_every_one_pool_mode_size_and_chunk_is_listed() -> None:
    asked = question(group(4), modes=(Mode.ONE_POOL, Mode.ONE_POOL_CHUNKED))
    found = {
        (
            p.cluster.mode,
            p.cluster.decode.tensor_parallel,
            p.cluster.decode.replicas,
            p.cluster.decode.max_num_batched_tokens,
        )
        for p in one_pools(asked, fits_of(asked), 4.0, above=3.0)
    }
    chunked = Mode.ONE_POOL_CHUNKED
    assert found == {
        (Mode.ONE_POOL, 1, 4, 8192),
        (Mode.ONE_POOL, 2, 2, 8192),
        *((chunked, tp, 4 // tp, chunk) for tp in (1, 2) for chunk in (512, 2048)),
    }


@given(st.integers(1, 40))
def test_budgets_below_the_whole_do_not_depend_on_it(devices: int) -> None:
    fewer = levels(question(group(devices)))
    more = levels(question(group(devices + 1)))
    assert fewer[-1] == devices
    assert list(fewer) == sorted(set(fewer))
    assert set(fewer[:-1]) <= set(more) if devices > 8 else set(fewer) <= set(more)


@given(st.integers(2, 20), st.floats(0.3, 5.0))
def test_splits_use_up_the_budget_and_no_more(devices: int, price: float) -> None:
    asked = question(group(devices, price=price))
    budget = devices * price
    for pair in size_pairs(asked, fits_of(asked)):
        p_each, d_each = (fit.shape.gpus * price for fit in pair)
        for x, y in splits(asked, pair, budget, above=0.0):
            cost = x * p_each + y * d_each
            assert cost <= budget * (1 + 1e-6)
            assert x == pair[0].most or cost + p_each > budget * (1 - 1e-6)


def test_all_splits_of_every_size_of_eight_devices_are_listed_over_the_budgets() -> None:
    asked = question(group(8))
    pair = size_pairs(asked, fits_of(asked))[0]
    seen, above = set(), 0.0
    for price in levels(asked):
        seen |= set(splits(asked, pair, price, above=above))
        above = price
    assert seen == {(x, y) for x in range(1, 8) for y in range(1, 8) if x + y <= 8}


def test_budgets_are_whole_devices_at_their_price() -> None:
    assert levels(question(group(2, price=2.5))) == pytest.approx((2.5, 5.0))
