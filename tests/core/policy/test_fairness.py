"""The counters are fair: bounded differences, no service saved up, bounded memory.

Properties:
- two backlogged tenants of equal weight never differ by more than the dearest request when the lower is served, and
  of unequal weights not in service by weight;
- counters never fall, over_share is never negative, and it is 0 for some tenant with requests;
- whatever comes and goes, accounts and heap stay bounded, and the least is that of a plain search.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.fairness import OTHERS, TenantService

requests = st.tuples(st.integers(0, 4000), st.integers(0, 1000))
tenants = st.sampled_from(("a", "b", "c", "d", OTHERS))


def service(**options: object) -> TenantService:
    return TenantService(**({"prompt_token_s": 1e-4, "output_token_s": 1e-3} | options))  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(requests, min_size=1, max_size=100), st.lists(requests, min_size=1, max_size=100), st.integers(1, 4))
def test_two_backlogged_tenants_differ_by_one_request(
    a: list[tuple[int, int]], b: list[tuple[int, int]], weight: int
) -> None:
    counters = service(weights={"b": weight})
    waiting = {"a": list(a), "b": list(b)}
    for name, queue in waiting.items():
        for _ in queue:
            counters.arrived(name)
    dearest_s = max(prompt * 1e-4 + output * 1e-3 for prompt, output in a + b)
    had_s = dict.fromkeys(waiting, 0.0)
    while all(waiting.values()):
        name = min(waiting, key=counters.over_share_s)
        prompt, output = waiting[name].pop()
        counters.charge(name, prompt, 0)
        counters.charge(name, 0, output)
        had_s[name] += (prompt * 1e-4 + output * 1e-3) / (weight if name == "b" else 1)
        assert abs(had_s["a"] - had_s["b"]) <= dearest_s + 1e-9
        assert max(map(counters.over_share_s, waiting)) == pytest.approx(abs(had_s["a"] - had_s["b"]))


def test_who_was_away_saved_nothing_up() -> None:
    counters = service()
    counters.arrived("busy")
    counters.charge("busy", 100_000, 0)
    counters.arrived("new")
    assert counters.over_share_s("busy") == counters.over_share_s("new") == 0.0
    counters.charge("busy", 10_000, 0)
    assert (counters.over_share_s("busy"), counters.over_share_s("new")) == (pytest.approx(1.0), 0.0)


def test_the_first_after_a_pause_begins_where_the_last_ended() -> None:
    counters = service()
    counters.arrived("a")
    counters.charge("a", 10_000, 0)
    counters.left("a")
    counters.arrived("b")
    counters.arrived("a")
    assert counters.over_share_s("a") == 0.0


def test_leaving_does_not_forget_what_was_had() -> None:
    counters = service()
    counters.arrived("a")
    counters.arrived("b")
    counters.charge("a", 10_000, 0)
    counters.left("a")
    counters.arrived("a")
    assert counters.over_share_s("a") == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("arrived", "left", "charge")), tenants, st.integers(0, 9)), max_size=80))
def test_accounts_are_bounded_and_the_least_is_found(script: list[tuple[str, str, int]]) -> None:
    counters = service(max_tenants=2)
    for action, tenant, tokens in script:
        if action == "charge":
            before = counters.over_share_s(tenant)
            counters.charge(tenant, tokens, tokens)
            assert counters.over_share_s(tenant) >= before or before == 0.0
        else:
            getattr(counters, action)(tenant)
        assert len(counters) <= 2
        accounts = [*counters._active.values(), *([counters._others] if counters._others.num_active else [])]
        assert all(account.num_active > 0 for account in accounts)
        assert counters._least_s() == min((account.service_s for account in accounts), default=0.0)
        assert all(counters.over_share_s(name) >= 0.0 for name in "abcd")


def test_each_request_that_leaves_is_one_that_arrived() -> None:
    counters = service(max_tenants=1)
    for name in ("a", "b", "c"):
        counters.arrived(name)
    counters.charge("b", 10_000, 0)
    assert counters.over_share_s("c") == pytest.approx(1.0)  # shares its account
    for name in ("b", "a", "c"):
        counters.left(name)
    counters.left("c")
    counters.left("unknown")
    counters.arrived("d")
    assert (counters.over_share_s("d"), len(counters)) == (0.0, 1)


def test_tenants_that_come_and_go_leave_nothing_behind() -> None:
    counters = service(max_tenants=10)
    counters.arrived("stays")
    for number in range(20_000):
        name = f"t-{number % 500}"
        counters.arrived(name)
        counters.charge(name, 1000, 10)
        counters.left(name)
    assert len(counters) <= 10
    assert len(counters._least) <= 100
