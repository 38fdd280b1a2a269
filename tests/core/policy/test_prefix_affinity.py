from __future__ import annotations

from core.policy.registry import policy_named
from core.types import ClusterView, RequestShape, Role, Route, WorkerView
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE


def decide(*members: WorkerView, whole_only: str | None = None, **cached: int) -> object:
    shape = RequestShape("r", 1000, None, "interactive", whole_only, cached=tuple(sorted(cached.items())))
    return policy_named("prefix-affinity").decide(shape, ClusterView(members), 0.0)


def test_the_longest_cached_prefix_wins() -> None:
    members = (worker("p0", P), worker("p1", P, requests=1), worker("p2", P, requests=1), worker("d0", D))
    assert decide(*members, p1=512, p2=768) == Route("d0", "p2", "longest cached prefix")


def test_without_a_hit_the_fewest_requests_win() -> None:
    members = (worker("p0", P, requests=2), worker("p1", P, requests=1), worker("d0", D, requests=1), worker("d1", D))
    assert decide(*members) == Route("d1", "p1", "least loaded")


def test_equal_hits_are_told_apart_by_requests() -> None:
    members = (worker("p0", P, requests=1), worker("p1", P), worker("p2", P), worker("d0", D))
    assert decide(*members, p0=512, p1=512) == Route("d0", "p1", "longest cached prefix")


def test_a_hit_counts_for_nothing_beyond_the_bound() -> None:
    # Eight requests and this one on two workers, 25 % above the mean: six at most.
    def taken(hot: int) -> object:
        return decide(worker("p0", P, requests=hot), worker("p1", P, requests=8 - hot), worker("d0", D), p0=900)

    assert taken(5) == Route("d0", "p0", "longest cached prefix")
    assert taken(6) == Route("d0", "p1", "least loaded")


def test_both_sides_have_prefixes_and_whole_requests_too() -> None:
    members = (worker("p0", P), worker("d0", D), worker("d1", D, requests=1))
    assert decide(*members, d1=256) == Route("d1", "p0", "longest cached prefix")
    assert decide(*members, whole_only="n>1", d1=256) == Route("d1", None, "n>1")
