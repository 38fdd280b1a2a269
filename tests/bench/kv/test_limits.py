from __future__ import annotations

from tests.support.kv_bench import move_once


def test_copy_puts_every_block_in_place_and_is_timed_at_the_receiver() -> None:
    sender, receiver, wrong = move_once("bench.kv.limits", {"limit": "memcpy"})
    assert wrong == 0
    assert sender.began_s is sender.ended_s is None
    assert receiver.began_s is not None
    assert receiver.ended_s is not None
    assert receiver.began_s < receiver.ended_s


def test_plain_streams_are_timed_from_the_first_byte_sent_to_the_last_received() -> None:
    sender, receiver, _ = move_once("bench.kv.limits", {"limit": "tcp"})
    assert sender.began_s is not None
    assert receiver.ended_s is not None
    assert sender.began_s < receiver.ended_s
    assert sender.ended_s is receiver.began_s is None
