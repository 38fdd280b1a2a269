from __future__ import annotations

from tests.support.kv_bench import move_once


def test_every_block_arrives() -> None:
    sender, receiver, wrong = move_once("bench.kv.peers_files", {}, in_turn=True)
    assert wrong == 0
    assert sender.began_s is not None
    assert receiver.ended_s is not None
