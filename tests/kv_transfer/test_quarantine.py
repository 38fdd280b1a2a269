"""When a sender is left out, and for how long."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from core.errors import PeerMismatch
from kv_transfer.quarantine import FIRST_S, LONGEST_S, MISMATCHES, QUARANTINED, WINDOW_S, Quarantine, read_quarantined

SENDER = ("prefill-0", 7)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(clock)


def err(quarantine: Quarantine, times: int) -> None:
    for _ in range(times):
        quarantine.mismatch(SENDER, "bits flipped")


def test_a_few_mismatches_leave_a_sender_out_for_a_while(quarantine: Quarantine, clock: Clock) -> None:
    err(quarantine, MISMATCHES - 1)
    quarantine.check(SENDER)
    err(quarantine, 1)
    with pytest.raises(PeerMismatch, match=r"prefill-0 is in quarantine here for 60 s more: 3 hand-overs .* flipped"):
        quarantine.check(SENDER)
    quarantine.check(("prefill-0", 8))  # restarted
    (said,) = quarantine.report()
    assert (said.worker_id, said.epoch, said.times, said.left_s) == (*SENDER, 1, FIRST_S)
    assert quarantine.mismatches == MISMATCHES
    clock.now_s += FIRST_S
    quarantine.check(SENDER)
    assert quarantine.report() == ()


def test_one_more_after_a_time_out_leaves_it_out_for_twice_as_long(quarantine: Quarantine, clock: Clock) -> None:
    err(quarantine, MISMATCHES)
    err(quarantine, 5)  # of hand-overs that were under way
    left_s = []
    for _ in range(8):
        (said,) = quarantine.report()
        left_s.append(said.left_s)
        clock.now_s += said.left_s
        err(quarantine, 1)
    assert left_s == [min(LONGEST_S, FIRST_S * 2**i) for i in range(8)]


def test_mismatches_long_ago_do_not_count(quarantine: Quarantine, clock: Clock) -> None:
    for _ in range(3 * MISMATCHES):
        err(quarantine, 1)
        clock.now_s += WINDOW_S + 1
    assert quarantine.report() == ()


def test_what_is_carried_is_read_back(quarantine: Quarantine) -> None:
    err(quarantine, MISMATCHES)
    assert read_quarantined({QUARANTINED: [asdict(said) for said in quarantine.report()]}) == quarantine.report()
    assert read_quarantined({QUARANTINED: []}) == ()
    assert read_quarantined({}) is None


def test_what_was_done_on_purpose_can_be_forgiven(quarantine: Quarantine) -> None:
    err(quarantine, MISMATCHES)
    quarantine.forgive()
    quarantine.check(SENDER)
    assert quarantine.report() == ()
    assert quarantine.mismatches == MISMATCHES
