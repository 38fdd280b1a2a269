"""The least pair is the least of all pairs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.policy.pairing import least, least_pair
from core.policy.protocol import Candidates
from core.types import Role, WorkerView
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
