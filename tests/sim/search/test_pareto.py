"""The front holds all and only what no other candidate beats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.plan import Candidate, Interval
from sim.search.pareto import front
from tests.sim.search.queue_model import shape


def candidate(goodput: float, price: float, attained: float) -> Candidate:
    cluster = ClusterSpec(Mode.ONE_POOL, PoolSpec(1, shape().cost, 1000))
    exact = Interval(attained, attained, attained)
    return Candidate(cluster, (0,), Interval(goodput, goodput, goodput), (exact,), price)


CANDIDATES = st.lists(
    st.builds(candidate, st.integers(1, 5), st.integers(1, 5), st.sampled_from((0.9, 0.95, 1.0))), max_size=12
)


def no_worse(a: Candidate, b: Candidate) -> bool:
    same_or_more = a.goodput.mid >= b.goodput.mid and a.attainment[0].mid >= b.attainment[0].mid
    return same_or_more and a.price_per_hour <= b.price_per_hour


@given(CANDIDATES)
def test_everything_is_on_the_front_or_beaten_by_it(candidates: list[Candidate]) -> None:
    kept = front(candidates)
    assert [c.goodput.mid for c in kept] == sorted(c.goodput.mid for c in kept)
    for one in candidates:
        assert any(no_worse(other, one) for other in kept)
    for one in kept:
        assert not any(no_worse(other, one) and other != one for other in kept)


def test_attainments_within_a_point_count_as_equal() -> None:
    cheap, dear = candidate(2.0, 1.0, 0.900), candidate(2.0, 2.0, 0.905)
    assert front((dear, cheap)) == (cheap,)
