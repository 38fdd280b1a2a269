"""What a request was promised, as keys and shares."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy.context import ClassTarget, Tier
from core.policy.promise import Promise, Promises
from core.types import RequestShape
from tests.support.contexts import context

CLASSES = {
    "gold": ClassTarget(0.4, 0.04, Tier.PROTECTED),
    "chat": ClassTarget(0.5, 0.05),
    "spare": ClassTarget(30.0, 0.5, Tier.BEST_EFFORT),
}
PROMISES = Promises(context(targets=CLASSES))


def promise(slo_class: str = "chat", *, own_s: float = 0.1, now_s: float = 100.0, **known: Any) -> Promise:
    return PROMISES.of(RequestShape("r", 100, None, slo_class, **known), own_s, now_s)


def test_key_is_the_latest_time_to_begin() -> None:
    plain = promise("gold")
    assert (plain.ttft_s, plain.tpot_s, plain.budget_s) == (0.4, 0.04, 0.4)
    assert plain.latest_s == plain.key_s == pytest.approx(100.3)
    waited = promise("gold", now_s=100.2, waited_s=0.2)
    assert (waited.key_s, waited.budget_s) == pytest.approx((100.3, 0.2))
    alone = Promises(context()).of(RequestShape("r", 100, None, "interactive"), 0.1, 100.0)
    assert alone.key_s == alone.latest_s == pytest.approx(100.4)


def test_own_targets_come_before_those_of_the_class() -> None:
    own = promise(ttft_s=0.3, tpot_s=0.02)
    assert (own.ttft_s, own.tpot_s) == (0.3, 0.02)
    assert own.latest_s == pytest.approx(100.2)


def test_what_is_late_goes_behind_what_can_be_in_time() -> None:
    assert promise(own_s=0.6).key_s > promise(now_s=5000.0).key_s
    assert promise("spare", own_s=0.6).key_s > promise(own_s=0.6).key_s > promise("gold", own_s=0.6).key_s
    # The queue itself puts the first tier's late ones back; they keep their time.
    assert promise("gold", own_s=0.6).key_s == pytest.approx(99.8)


def test_service_beyond_its_share_moves_a_tenant_back_but_not_for_ever() -> None:
    assert promise(over_share_s=0.1).key_s - promise().key_s == pytest.approx(0.1)
    assert promise(over_share_s=0.1).budget_s == pytest.approx(0.4)
    assert promise(over_share_s=99.0).key_s - promise().key_s == pytest.approx(0.25)


def test_priority_orders_within_the_class() -> None:
    assert promise(priority=-1).key_s < promise().key_s < promise(priority=1).key_s
    assert promise(priority=1000).key_s == promise(priority=10).key_s


def test_shares_leave_headroom_to_those_above() -> None:
    shares = [promise(name).share for name in ("gold", "chat", "spare")]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert Promises(context()).of(RequestShape("r", 1, None, "interactive"), 0.0, 0.0).share == 1.0
    alone = Promises(context(targets={"spare": CLASSES["spare"]}))
    assert alone.of(RequestShape("r", 1, None, "spare"), 0.0, 0.0).share == 1.0


def test_tightest_target_is_of_those_that_are_promised_firmly() -> None:
    assert PROMISES.tightest_ttft_s == 0.4
    assert Promises(context(targets={})).tightest_ttft_s == math.inf


@given(
    tiers=st.permutations(("gold", "chat", "spare")).map(lambda names: names[:2]),
    waited=st.tuples(st.floats(0, 20), st.floats(0, 20)),
    over=st.floats(0, 100),
    priority=st.integers(-100, 100),
    own_s=st.floats(0, 60),
)
def test_no_key_of_one_tier_comes_between_those_of_another(
    tiers: tuple[str, str], waited: tuple[float, float], over: float, priority: int, own_s: float
) -> None:
    order = ["gold", "chat", "spare"]
    high, low = sorted(tiers, key=order.index)
    above = promise(high, own_s=own_s, waited_s=waited[0], over_share_s=over, priority=priority)
    below = promise(low, own_s=own_s, waited_s=waited[1], priority=-priority)
    assert above.key_s < below.key_s
    assert math.isfinite(below.key_s)
