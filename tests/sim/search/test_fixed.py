"""A named cluster takes the devices it says, or is refused."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.search.fixed import fixed_placement
from tests.sim.search.queue_model import group, question, shape


def pool(count: int, device: str = "small") -> PoolSpec:
    return PoolSpec(count, shape().cost, 60_000, device=device)


def test_pools_are_priced_on_the_groups_of_their_devices() -> None:
    asked = question(group(4, name="fast", price=3.0), group(4, name="slow", price=1.0))
    placement = fixed_placement(asked, ClusterSpec(Mode.DISAGGREGATED, pool(2, "slow"), pool(1, "fast")))
    assert (placement.group, placement.price_per_hour, placement.nodes_spanned) == ((0, 1), 5.0, True)


def test_pools_inside_a_node_span_none() -> None:
    placement = fixed_placement(question(), ClusterSpec(Mode.DISAGGREGATED, pool(2), pool(2)))
    assert (placement.price_per_hour, placement.nodes_spanned) == (4.0, False)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (ClusterSpec(Mode.DISAGGREGATED, pool(3), pool(2)), "do not fit"),
        (ClusterSpec(Mode.ONE_POOL, pool(1, "other")), "no device 'other'.*small"),
    ],
)
def test_what_is_not_there_is_refused(cluster: ClusterSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fixed_placement(question(), cluster)
