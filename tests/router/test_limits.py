"""Limits of a tenant.

Invariants, for any traffic:
- in any window, no more requests are let in than the window's worth and one bucket;
- in any window, no more tokens are taken than the window's worth and one bucket, or one request that is larger;
- whatever the estimates, what was really used when a request is let in is no more than the time's worth and one bucket;
- a refused request that comes back at the named time is let in, and one that comes earlier is not;
- requests in flight never pass their limit, and all are given back.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RateLimited
from router.limits import BURST_S, Grant, Limits
from router.tenants import ANYBODY, Tenant

gaps_s = st.floats(0, 30, allow_nan=False)
counts = st.integers(1, 100_000)
sizes = st.integers(0, 20_000)


def bucket(per_minute: int) -> float:
    return max(1.0, per_minute / 60 * BURST_S)


def windows(events: list[tuple[float, float]]) -> list[tuple[float, float, float]]:
    """Give length, sum and greatest item of every window between two events."""
    found = []
    for first in range(len(events)):
        for last in range(first, len(events)):
            inside = [amount for _, amount in events[first : last + 1]]
            found.append((events[last][0] - events[first][0], sum(inside), max(inside)))
    return found


def wait_s(limits: Limits, tenant: Tenant, at_s: float, tokens: int = 0) -> float | None:
    """Send a request that ends at once; give the time that its refusal names, 0 when it is let in."""
    refused: RateLimited | None = None
    try:
        grant = limits.admit(tenant, at_s)
    except RateLimited as exc:
        return exc.retry_after_s
    try:
        grant.charge(tokens, at_s)
    except RateLimited as exc:
        refused = exc
    grant.settle(0 if refused else tokens, 0)
    return refused.retry_after_s if refused else 0.0


@given(counts, st.lists(gaps_s, max_size=20))
def test_no_window_holds_more_requests_than_its_worth_and_a_bucket(per_minute: int, gaps: list[float]) -> None:
    limits, tenant, now_s = Limits(), Tenant("a", requests_per_minute=per_minute), 0.0
    let_in = []
    for gap_s in gaps:
        now_s += gap_s
        named_s = wait_s(limits, tenant, now_s)
        assert named_s is not None
        if named_s == 0:
            let_in.append((now_s, 1.0))
    for length_s, total, _ in windows(let_in):
        assert total <= (length_s * per_minute / 60 + bucket(per_minute)) * (1 + 1e-6)


@given(counts, st.lists(st.tuples(gaps_s, sizes), max_size=20))
def test_no_window_takes_more_tokens_than_its_worth_and_a_bucket(
    per_minute: int, arrivals: list[tuple[float, int]]
) -> None:
    limits, tenant, now_s = Limits(), Tenant("a", tokens_per_minute=per_minute), 0.0
    taken = []
    for gap_s, size in arrivals:
        now_s += gap_s
        if wait_s(limits, tenant, now_s, size) == 0:
            taken.append((now_s, float(size)))
    for length_s, total, greatest in windows(taken):
        # A request that is larger than the bucket takes a full one and leaves a debt.
        most = length_s * per_minute / 60 + max(bucket(per_minute), greatest)
        assert total <= most * (1 + 1e-6) + 1e-6


@given(counts, st.lists(st.tuples(gaps_s, sizes, sizes, sizes), max_size=20))
def test_what_was_really_used_keeps_the_limit_in_the_long_run(
    per_minute: int, arrivals: list[tuple[float, int, int, int]]
) -> None:
    limits, tenant, now_s, used = Limits(), Tenant("a", tokens_per_minute=per_minute), 0.0, 0
    for gap_s, estimated, prompt, output in arrivals:
        now_s += gap_s
        try:
            grant = limits.admit(tenant, now_s)
        except RateLimited:
            continue
        assert used <= (now_s * per_minute / 60 + bucket(per_minute)) * (1 + 1e-6)
        try:
            grant.charge(estimated, now_s)
        except RateLimited:
            grant.settle(0, 0)
            continue
        grant.settle(prompt, output)
        used += prompt + output


@given(counts, counts, st.lists(st.tuples(gaps_s, sizes), min_size=1, max_size=20), st.floats(0.05, 0.95))
def test_the_named_time_is_exact(rpm: int, tpm: int, arrivals: list[tuple[float, int]], early: float) -> None:
    limits, tenant, now_s = Limits(), Tenant("a", requests_per_minute=rpm, tokens_per_minute=tpm), 0.0
    for gap_s, size in arrivals:
        now_s += gap_s
        named_s = wait_s(limits, tenant, now_s, size)
        assert named_s is not None
        if named_s > 1e-3:
            assert wait_s(limits, tenant, now_s + early * named_s, size) != 0
        if named_s > 0:
            now_s += named_s
            further_s = wait_s(limits, tenant, now_s, size)
            assert further_s is not None
            if further_s > 0:  # a debt was named before the prompt was known: its own tokens are waited for once more
                now_s += further_s
                assert wait_s(limits, tenant, now_s, size) == 0


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_requests_in_flight_never_pass_their_limit(most: int, comes: list[bool]) -> None:
    limits, tenant = Limits(), Tenant("a", max_concurrent=most)
    running: list[Grant] = []
    for is_arrival in comes:
        if not is_arrival:
            if running:
                running.pop().settle(10, 10)
        elif len(running) < most:
            running.append(limits.admit(tenant, 0.0))
        else:
            with pytest.raises(RateLimited, match="max_concurrent") as refused:
                limits.admit(tenant, 0.0)
            assert refused.value.retry_after_s is None  # nobody knows when one ends
    for grant in running:
        grant.settle(0, 0)
    for _ in range(most):
        limits.admit(tenant, 0.0)


def test_tenants_do_not_share_limits_and_anybody_has_none() -> None:
    limits = Limits()
    first, second = (Tenant(name, requests_per_minute=1) for name in "ab")
    limits.admit(first, 0.0)
    with pytest.raises(
        RateLimited, match=r"tenant a is at its limit of 1 requests in a minute \(requests_per_minute\)"
    ):
        limits.admit(first, 0.0)
    limits.admit(second, 0.0)
    for _ in range(1000):
        limits.admit(ANYBODY, 0.0).charge(1 << 30, 0.0)


def test_a_request_refused_for_its_tokens_counts_for_nothing() -> None:
    limits, tenant = Limits(), Tenant("a", requests_per_minute=6, tokens_per_minute=600)
    grant = limits.admit(tenant, 0.0)
    grant.charge(80, 0.0)
    grant.settle(80, 0)
    second = limits.admit(tenant, 10.0)  # the bucket holds one request and 100 tokens
    second.charge(90, 10.0)
    second.settle(90, 0)
    third = limits.admit(tenant, 20.0)
    third.charge(100, 20.0)
    third.settle(0, 0)  # refused by the policy: its tokens are given back
    fourth = limits.admit(tenant, 30.0)
    fourth.charge(100, 30.0)
    fourth.settle(100, 0)
    fifth = limits.admit(tenant, 40.0)
    fifth.charge(60, 40.0)
    fifth.settle(60, 0)
    refused = limits.admit(tenant, 50.0)
    refused.charge(100, 50.0)
    refused.settle(160, 0)  # more than was estimated
    with pytest.raises(RateLimited) as named:
        limits.admit(tenant, 50.0)
    assert named.value.retry_after_s == pytest.approx(10.0)  # for the request; the debt of 60 tokens is filled in 6 s


def test_new_limits_hold_at_once_and_requests_in_flight_stay_counted() -> None:
    limits, tenant = Limits(), Tenant("a", requests_per_minute=1, max_concurrent=2)
    running = limits.admit(tenant, 0.0)
    wider = replace(tenant, requests_per_minute=600)
    limits.admit(wider, 0.0)
    with pytest.raises(RateLimited, match="max_concurrent"):
        limits.admit(wider, 0.0)
    running.settle(1, 1)
    limits.admit(wider, 0.0)


def test_a_grant_gives_back_once() -> None:
    limits, tenant = Limits(), Tenant("a", max_concurrent=1)
    grant = limits.admit(tenant, 0.0)
    grant.settle(1, 1)
    grant.settle(1, 1)
    limits.admit(tenant, 0.0)
    with pytest.raises(RateLimited):
        limits.admit(tenant, 0.0)
