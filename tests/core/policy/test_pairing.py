"""The least pair is the least of all pairs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.policy.least_work import LeastPredictedWork
from core.policy.pairing import decide_allowed, least, least_pair
from core.policy.protocol import Candidates
from core.types import ClusterView, Decision, RequestShape, Role, Route, WorkerView
from tests.support.views import worker

pools = st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab")), max_size=5)


def load(view: WorkerView) -> float:
    return view.inflight_requests


@given(prefill=pools, decode=pools)
def test_no_compatible_pair_is_less(prefill: list[tuple[int, str]], decode: list[tuple[int, str]]) -> None:
    senders = tuple(worker(f"p{i}", Role.PREFILL, requests=n, model=m) for i, (n, m) in enumerate(prefill))
    receivers = tuple(worker(f"d{i}", Role.DECODE, requests=n, model=m) for i, (n, m) in enumerate(decode))
    every = [
        (load(d) + load(p), d.record.worker_id, p.record.worker_id)
        for d in receivers
        for p in senders
        if d.hello.fingerprint == p.hello.fingerprint
    ]
    found = least_pair(Candidates(senders, receivers), load, load)
    if not every:
        assert found is None
        return
    assert found is not None
    scores = {(d, p): score for score, d, p in every}
    assert scores[found] == min(every)[0]


def test_least_breaks_ties_by_id() -> None:
    assert least((worker("b", Role.DECODE), worker("a", Role.DECODE)), load) == "a"


@given(
    senders=st.integers(0, 3),
    receivers=st.integers(1, 3),
    barred=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2))),
    loads=st.lists(st.integers(0, 5), min_size=6, max_size=6),
)
def test_a_pair_that_is_not_allowed_is_never_decided_and_an_allowed_one_is_found(
    senders: int, receivers: int, barred: set[tuple[int, int]], loads: list[int]
) -> None:
    workers = [worker(f"p{i}", Role.PREFILL, tokens=100 * loads[i]) for i in range(senders)]
    workers += [worker(f"d{i}", Role.DECODE, requests=loads[3 + i]) for i in range(receivers)]
    cluster = ClusterView(tuple(workers))
    asked = 0

    def decide(excluded: frozenset[str]) -> Decision:
        nonlocal asked
        asked += 1
        shape = RequestShape("r", 100, 10, "interactive")
        return LeastPredictedWork().decide(shape, cluster.without(excluded), 0.0)

    def allows(prefill: str, decode: str) -> bool:
        return (int(prefill[1:]), int(decode[1:])) not in barred

    excluded, decision = decide_allowed(decide, frozenset(), allows)
    assert isinstance(decision, Route)
    assert decision == decide(excluded)
    assert decision.prefill is None or allows(decision.prefill, decision.decode)
    assert asked <= 2 + 2 * senders
    least_loaded = min(range(receivers), key=lambda i: loads[3 + i])
    if any((i, least_loaded) not in barred for i in range(senders)):
        assert decision.prefill is not None
