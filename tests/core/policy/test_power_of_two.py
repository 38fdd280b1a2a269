from __future__ import annotations

from collections import Counter

from core.policy.registry import policy_named
from core.types import ClusterView, RequestShape, Role, Route, WorkerView
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE


def routes(count: int, *members: WorkerView, whole_only: str | None = None) -> list[Route]:
    policy = policy_named("power-of-two")
    shapes = [RequestShape(f"r{i}", 1, None, "interactive", whole_only) for i in range(count)]
    decisions = [policy.decide(shape, ClusterView(members), 0.0) for shape in shapes]
    return [d for d in decisions if isinstance(d, Route)]


def test_the_worker_with_fewer_requests_of_two_is_taken_on_both_sides() -> None:
    taken = routes(
        64,
        worker("p0", P, requests=1, tokens=9000),
        worker("p1", P, requests=2, tokens=20),
        worker("d0", D, num_waiting=2),
        worker("d1", D, num_running=1),
    )
    assert taken == [Route("d1", "p0", "the less loaded of two")] * 64


def test_all_but_the_most_loaded_worker_are_taken_in_proportion_to_the_pairs_they_win() -> None:
    # Of the six pairs of four workers the least loaded wins three, the second two, the third one, the last none.
    taken = routes(6000, worker("p", P), *(worker(f"d{i}", D, requests=i) for i in range(4)))
    shares = Counter(route.decode for route in taken)
    assert shares["d3"] == 0
    for name, pairs in (("d0", 3), ("d1", 2), ("d2", 1)):
        assert abs(shares[name] - 1000 * pairs) < 150


def test_a_whole_request_goes_to_the_less_loaded_of_two_decode_workers() -> None:
    taken = routes(8, worker("p", P), worker("d0", D, requests=3), worker("d1", D), whole_only="n>1")
    assert taken == [Route("d1", None, "n>1")] * 8


def test_unlike_decode_workers_are_not_drawn() -> None:
    taken = routes(8, worker("p", P), worker("d0", D, model="b"), worker("d1", D, requests=9))
    assert taken == [Route("d1", "p", "the less loaded of two")] * 8
