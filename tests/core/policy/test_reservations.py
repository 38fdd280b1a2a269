"""A reservation is for one request, at its time, once, and there are no more than can be kept.

Properties: only tokens of the same secret, unchanged, are taken; each once, only for its class and tenant, only in its
window; the promises of any span of seconds are at most those of the rate; nothing that is over is kept.
"""

from __future__ import annotations

import base64
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.reservations import Reservation, Reservations

NOW_S = 1_800_000_000.25


def desk(secret: str = "s", issuer: str = "r-0") -> Reservations:
    return Reservations(secret, issuer=issuer, window_s=5.0, horizon_s=60.0)


def promise(reservations: Reservations, *, in_s: float = 3.0, rate: float = 10.0, now_s: float = NOW_S) -> Reservation:
    made = reservations.issue("chat", "t", earliest_s=now_s + in_s, rate_per_s=rate, now_s=now_s)
    assert made is not None
    return made


def test_a_token_is_taken_once_in_its_window() -> None:
    reservations = desk()
    made = promise(reservations)
    assert (made.earliest_s, made.expires_s) == (NOW_S + 3.0, NOW_S + 8.0)
    assert not reservations.redeem(made.token, "chat", "t", NOW_S + 2.9)
    assert reservations.redeem(made.token, "chat", "t", NOW_S + 3.0)
    assert not reservations.redeem(made.token, "chat", "t", NOW_S + 3.0)
    late = promise(reservations)
    assert not reservations.redeem(late.token, "chat", "t", late.expires_s + 0.01)


def test_a_token_is_for_its_class_and_tenant() -> None:
    reservations = desk()
    made = promise(reservations)
    for slo_class, tenant in (("batch", "t"), ("chat", "u"), ("t", "chat")):
        assert not reservations.redeem(made.token, slo_class, tenant, NOW_S + 4)
    assert reservations.redeem(made.token, "chat", "t", NOW_S + 4)


def test_routers_of_one_secret_take_each_others_tokens() -> None:
    one, other, stranger = desk(), desk(issuer="r-1"), desk(secret="x")
    token = promise(one).token
    assert not stranger.redeem(token, "chat", "t", NOW_S + 4)
    promise(other)
    assert other.redeem(token, "chat", "t", NOW_S + 4)
    with pytest.raises(ValueError, match="secret"):
        desk(secret="")


@given(st.data())
def test_a_changed_token_is_none(data: st.DataObject) -> None:
    reservations = desk()
    token = promise(reservations).token
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    changed = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    assert not reservations.redeem(changed, "chat", "t", NOW_S + 4)
    assert reservations.redeem(token, "chat", "t", NOW_S + 4)


@given(
    st.text(max_size=60) | st.just("A" * 100_000) | st.binary(max_size=60).map(lambda b: base64.b64encode(b).decode())
)
def test_any_text_is_no_token(text: str) -> None:
    assert not desk().redeem(text, "chat", "t", NOW_S)


def test_a_token_without_its_signature_says_whose_it_is() -> None:
    token = promise(desk()).token
    body = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[16:]
    assert json.loads(body) == ["r-0", 1, "chat", "t", NOW_S + 3.0, NOW_S + 8.0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 70), st.floats(0, 0.5)), min_size=1, max_size=150),
    st.sampled_from((-1.0, 0.0, 0.2, 1.0, 2.5, 7.0, float("inf"))),
)
def test_there_are_no_more_promises_than_the_rate_can_keep(wishes: list[tuple[float, float]], rate: float) -> None:
    reservations, now_s = desk(), NOW_S
    seconds: Counter[int] = Counter()
    for in_s, pause_s in wishes:
        now_s += pause_s
        made = reservations.issue("chat", "t", earliest_s=now_s + in_s, rate_per_s=rate, now_s=now_s)
        if made is not None:
            assert now_s + in_s <= made.earliest_s <= now_s + 62
            seconds[int(made.earliest_s)] += 1
    for begin in range(int(NOW_S), int(now_s) + 80):
        for length in (1, 3, 10):
            assert sum(seconds[second] for second in range(begin, begin + length)) <= max(rate, 0) * length + 1


def test_promises_of_one_second_come_one_after_the_other() -> None:
    reservations = desk()
    now_s = 1_800_000_000.0
    times = [promise(reservations, in_s=1.0, rate=4, now_s=now_s).earliest_s - now_s for _ in range(6)]
    assert times == [1.0, 1.25, 1.5, 1.75, 2.0, 2.25]


def test_nothing_is_promised_that_is_too_far_away_or_cannot_be_kept() -> None:
    reservations = desk()
    assert reservations.issue("chat", "t", earliest_s=NOW_S + 61, rate_per_s=9, now_s=NOW_S) is None
    assert reservations.issue("chat", "t", earliest_s=NOW_S, rate_per_s=0, now_s=NOW_S) is None
    assert reservations.num_promised == 0


def test_what_is_over_is_not_kept() -> None:
    reservations, now_s = desk(), NOW_S
    for number in range(5_000):
        now_s += 0.1
        made = promise(reservations, in_s=1.0, rate=20, now_s=now_s)
        assert reservations.redeem(made.token, "chat", "t", made.earliest_s), number
    assert len(reservations._used) < 150
    assert reservations.num_promised < 200
