"""The self-test of a pair with real engines: it lets a good pair pass, and none whose KV is wrong or does not come."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from cluster.membership import MembershipClient
from cluster.pool import WorkerPool
from core.policy.pair_trust import PairReport, PairTrust, Trust
from router.pair_tests import TEST_S, PairTests
from tests.support.stack import TOKEN, Stack

pytestmark = pytest.mark.engine


async def outcome(stack: Stack) -> PairReport:
    """Test the stack's pair as a router that meets it for the first time."""
    pool = WorkerPool(MembershipClient(stack.membership_address, TOKEN), token=TOKEN)
    trust = PairTrust(self_test=True)
    tests = PairTests(pool, trust, lease_s=5.0)
    await pool.start()
    testing = asyncio.create_task(tests.keep_testing())
    try:
        async with asyncio.timeout(2 * TEST_S):
            while True:
                reports = trust.report(monotonic())
                if reports and reports[0].trust is not Trust.UNTESTED:
                    return reports[0]
                await pool.wait_changed(0.05)
    finally:
        testing.cancel()
        await asyncio.gather(testing, return_exceptions=True)
        await pool.close()


def test_a_good_pair_passes_by_kv_that_came_over(stack: Stack) -> None:
    before = stack.landed()
    report = stack.run(outcome(stack))
    assert (report.trust, report.reason) == (Trust.TRUSTED, "")
    assert stack.landed() - before == 2
    stack.assert_nothing_held()


@pytest.mark.parametrize(
    ("faults", "why"),
    [({"zero_blocks": 1}, "of the self-test"), ({"drop_layer": 2}, "no KV came over")],
    ids=["zeros", "incomplete"],
)
def test_a_pair_with_wrong_kv_does_not_pass(stack: Stack, faults: dict[str, int], why: str) -> None:
    stack.inject(faults)
    try:
        report = stack.run(outcome(stack))
    finally:
        stack.inject({})
        stack.reset_prefix_caches()
    assert report.trust is Trust.FAILED
    assert why in report.reason
    stack.assert_nothing_held()
