"""What every policy must keep.

- The order of the workers in the view does not matter.
- Workers of unequal fingerprints are never paired, and each leg of a pair goes to a worker of its role.
- There is always a decision: a route to workers that are there and not draining, a hold, or a rejection. Only when
  there are none, or when the policy admits by prediction, is it a rejection; only where it may hold, a hold that ends.
- A request that must run whole is never split.
- Equal arguments give equal decisions.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy.context import PolicyContext
from core.policy.protocol import Candidates
from core.policy.registry import POLICIES, policy_named
from core.types import ClusterView, Hold, Margins, Rejection, RequestShape, Role, WorkerView
from tests.support.contexts import context
from tests.support.views import worker

CLASSES = ("a", "b")


@st.composite
def workers(draw: st.DrawFn) -> tuple[WorkerView, ...]:
    ids = draw(st.lists(st.integers(0, 20), max_size=8, unique=True))
    return tuple(
        worker(
            f"w{i}",
            draw(st.sampled_from(Role)),
            model=draw(st.sampled_from(CLASSES)),
            requests=draw(st.integers(0, 3)),
            tokens=draw(st.integers(0, 3)) * 1000,
            context=draw(st.integers(0, 3)) * 1000,
            since_s=draw(st.none() | st.just(-0.05)),
            num_running=draw(st.integers(0, 3)),
            num_waiting=draw(st.integers(0, 3)),
            kv_blocks_used=draw(st.integers(0, 10)),
            kv_blocks_total=draw(st.sampled_from((0, 10))),
            draining=draw(st.booleans()),
        )
        for i in ids
    )


requests = st.builds(
    RequestShape,
    request_id=st.text(min_size=1, max_size=8),
    prompt_tokens=st.integers(0, 10_000),
    max_tokens=st.none() | st.integers(1, 100),
    slo_class=st.sampled_from(("interactive", "unheard of")),
    whole_only=st.none() | st.just("n>1"),
    sequence=st.integers(0, 100),
    tenant=st.just("a"),
    ttft_s=st.sampled_from((None, 0.2)),
    tpot_s=st.sampled_from((None, 0.02)),
    waited_s=st.sampled_from((0.0, 0.4, 9.0)),
    priority=st.sampled_from((0, -1, 99)),
    cached=st.dictionaries(st.integers(0, 20).map(lambda i: f"w{i}"), st.integers(1, 9000), max_size=4).map(
        lambda known: tuple(sorted(known.items()))
    ),
    over_share_s=st.sampled_from((0.0, 0.2)),
    is_reserved=st.booleans(),
    margins=st.sampled_from((None, Margins(-1.0, 1.5, -2.0, 4.0, -0.5, 0.5))),
    attainment=st.sampled_from((None, 0.5, 0.95)),
)
contexts = st.builds(
    context,
    whole_below_tokens=st.sampled_from((0, 200)),
    overflow=st.booleans(),
    admit_by_ttft=st.booleans(),
    admit_by_tpot=st.booleans(),
    may_hold=st.booleans(),
)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(request=requests, members=workers(), known=contexts, data=st.data())
def test_every_policy_keeps_the_rules(
    name: str,
    request: RequestShape,
    members: tuple[WorkerView, ...],
    known: PolicyContext,
    data: st.DataObject,
) -> None:
    policy = policy_named(name, known)
    decision = policy.decide(request, ClusterView(members), 0.0)
    shuffled = tuple(data.draw(st.permutations(members)))
    assert policy.decide(request, ClusterView(shuffled), 0.0) == decision
    assert policy_named(name, known).decide(request, ClusterView(members), 0.0) == decision

    by_id = {w.record.worker_id: w for w in members if not w.state.draining}
    if isinstance(decision, Rejection):
        check_rejection(decision, is_empty=not by_id, may_refuse=name == "slo-aware")
        return
    if isinstance(decision, Hold):
        assert name == "slo-aware"
        assert known.may_hold
        assert 0 < decision.until_s <= 1.0
        assert decision.forecast is not None
        return
    may_shorten = known.whole_below_tokens or known.overflow
    chosen = by_id[decision.decode]
    assert decision.reason
    if decision.prefill is not None:
        sender = by_id[decision.prefill]
        assert sender.hello.fingerprint == chosen.hello.fingerprint
        assert (sender.record.role, chosen.record.role) == (Role.PREFILL, Role.DECODE)
        assert request.whole_only is None
    elif request.whole_only is None and not may_shorten and name != "slo-aware":
        assert not Candidates.of(ClusterView(members)).has_pair
    if chosen.record.role is Role.PREFILL:
        assert not any(w.record.role is Role.DECODE for w in by_id.values())


def check_rejection(rejection: Rejection, *, is_empty: bool, may_refuse: bool) -> None:
    if is_empty:
        assert rejection.error == "no_worker"
    else:
        assert may_refuse
        assert rejection.error in ("overloaded", "slo_infeasible")
    if rejection.error == "slo_infeasible":
        assert rejection.retry_after_s is None
    else:
        assert rejection.retry_after_s is not None
        assert 0 < rejection.retry_after_s < 3600
