from __future__ import annotations

from core.policy.registry import policy_named
from core.types import ClusterView, RequestShape, Role, Route
from tests.support.views import worker


def test_random_reaches_every_pair() -> None:
    members = ClusterView(tuple(worker(f"{r.value}{i}", r) for r in Role for i in range(2)))
    policy = policy_named("random")
    decisions = [policy.decide(RequestShape(f"r{i}", 1, None, "interactive"), members, 0.0) for i in range(64)]
    pairs = {(d.prefill, d.decode) for d in decisions if isinstance(d, Route)}
    assert pairs == {(f"prefill{i}", f"decode{j}") for i in range(2) for j in range(2)}
