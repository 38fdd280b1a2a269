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


def turns(members: ClusterView, count: int) -> list[tuple[str | None, str]]:
    policy = policy_named("round-robin")
    decisions = [
        policy.decide(RequestShape("r", 1, None, "interactive", sequence=i), members, 0.0) for i in range(count)
    ]
    return [(d.prefill, d.decode) for d in decisions if isinstance(d, Route)]


def test_round_robin_takes_each_worker_once_in_each_round() -> None:
    prefill = [worker(f"p{i}", Role.PREFILL) for i in range(2)]
    decode = [worker(f"d{i}", Role.DECODE) for i in range(3)]
    taken = turns(ClusterView((*prefill, *decode)), 6)
    assert [p for p, _ in taken] == ["p0", "p1"] * 3
    assert [d for _, d in taken] == ["d0", "d1", "d2"] * 2


def test_round_robin_takes_turns_within_each_fingerprint() -> None:
    prefill = [worker(f"p{i}", Role.PREFILL, model="ab"[i // 2]) for i in range(4)]
    decode = [worker(f"d{i}", Role.DECODE, model="ab"[i]) for i in range(2)]
    taken = turns(ClusterView((*prefill, *decode)), 4)
    assert taken == [("p0", "d0"), ("p2", "d1"), ("p1", "d0"), ("p3", "d1")]


def test_round_robin_leaves_unlike_decode_workers_alone() -> None:
    members = ClusterView((worker("p0", Role.PREFILL), worker("d0", Role.DECODE, model="b"), worker("d1", Role.DECODE)))
    assert turns(members, 2) == [("p0", "d1")] * 2
