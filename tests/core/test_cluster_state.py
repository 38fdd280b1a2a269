"""Views become events and events become the same views."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cluster_state import ClusterState, ViewDeltas, load_of
from core.events import LogOpened, Skipped, WorkerJoined, WorkerLeft, WorkerLoaded
from core.policy.context import PolicyContext
from core.types import ClusterView, Role, WorkerView
from tests.support.views import worker

A, B = worker("a", Role.PREFILL), worker("b", Role.DECODE)
BUSY = worker("a", Role.PREFILL, requests=1, tokens=10)

views = st.lists(
    st.builds(
        worker,
        st.sampled_from("abcd"),
        st.sampled_from(Role),
        model=st.sampled_from("xy"),
        requests=st.integers(0, 2),
        tokens=st.integers(0, 2),
        num_running=st.integers(0, 2),
    ),
    unique_by=lambda view: view.record.worker_id,
).map(lambda members: ClusterView(tuple(sorted(members, key=lambda w: w.record.worker_id))))


def follow(state: ClusterState, deltas: ViewDeltas, view: ClusterView) -> None:
    for event in deltas.next(view):
        state.apply(event)


@given(st.lists(views, max_size=10), st.booleans())
def test_the_state_follows_every_view(sequence: list[ClusterView], starts_anew: bool) -> None:
    state, deltas = ClusterState(), ViewDeltas()
    for view in sequence:
        if starts_anew:
            deltas.forget()
            state.apply(Skipped(1))
        follow(state, deltas, view)
        assert state.view() == view


def test_only_what_changed_is_told() -> None:
    deltas = ViewDeltas()
    assert list(deltas.next(ClusterView((A, B)))) == [
        WorkerJoined(A.record, A.hello),
        WorkerLoaded("a", load_of(A)),
        WorkerJoined(B.record, B.hello),
        WorkerLoaded("b", load_of(B)),
    ]
    assert list(deltas.next(ClusterView((A, B)))) == []
    assert list(deltas.next(ClusterView((BUSY, B)))) == [WorkerLoaded("a", load_of(BUSY))]
    assert list(deltas.next(ClusterView((BUSY,)))) == [WorkerLeft("b")]


def test_a_worker_that_is_another_joins_again() -> None:
    deltas = ViewDeltas()
    list(deltas.next(ClusterView((A,))))
    other = worker("a", Role.PREFILL, model="other")
    assert list(deltas.next(ClusterView((other,)))) == [
        WorkerJoined(other.record, other.hello),
        WorkerLoaded("a", load_of(other)),
    ]


@pytest.mark.parametrize("event", [WorkerLoaded("a", load_of(A)), WorkerLeft("a")])
def test_a_worker_must_join_first(event: WorkerLoaded | WorkerLeft) -> None:
    with pytest.raises(ValueError, match="'a' has not joined"):
        ClusterState().apply(event)


def test_a_new_log_knows_nobody() -> None:
    state = ClusterState()
    state.apply(WorkerJoined(A.record, A.hello))
    assert state.view() == ClusterView((WorkerView(A.record, A.hello),))
    state.apply(LogOpened("random", PolicyContext()))
    assert state.view() == ClusterView()
