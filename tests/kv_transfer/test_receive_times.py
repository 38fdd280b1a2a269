"""What the scheduler's half notes of a decode request, and what is read of it at the front."""

from __future__ import annotations

from itertools import count

from kv_transfer.receive_times import ReceiveTimes, read_times


def test_the_first_blocks_and_the_first_landing_count() -> None:
    times = ReceiveTimes(count(1.0).__next__)
    times.had_blocks("a")
    times.had_blocks("a")  # after a preemption
    times.landed(["a", "another's"])
    times.landed(["a"])
    assert read_times(times.take("a")) == (1.0, 3.0)
    assert times.take("a") is None


def test_nothing_is_told_of_what_did_not_land_or_was_none() -> None:
    times = ReceiveTimes(count(1.0).__next__)
    times.had_blocks("a")
    assert times.take("a") is None
    assert times.take("b") is None
    assert read_times(None) is None
    assert read_times({"do_remote_prefill": True}) is None
