from __future__ import annotations

from core.policy.registry import policy_named
from core.types import ClusterView, RequestShape, Role, Route, WorkerView
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE


def decide(*members: WorkerView) -> object:
    return policy_named("least-loaded").decide(RequestShape("r", 100, 16, "interactive"), ClusterView(members), 0.0)


def test_counts_alone_decide() -> None:
    long_prompt, two_short = worker("p0", P, requests=1, tokens=9000), worker("p1", P, requests=2, tokens=20)
    few, many = worker("d0", D, num_running=1, kv_blocks_used=9, kv_blocks_total=10), worker("d1", D, num_waiting=2)
    assert decide(long_prompt, two_short, few, many) == Route("d0", "p0", "least loaded")


def test_ties_go_to_the_lesser_ids() -> None:
    assert decide(worker("p1", P), worker("p0", P), worker("d1", D), worker("d0", D)) == Route(
        "d0", "p0", "least loaded"
    )
