from __future__ import annotations

import pytest

from bench.kv.systems import TRANSPORTS, options_of
from tests.support.kv_bench import move_once


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_block_lands_and_the_receiver_knows(transport: str) -> None:
    sender, receiver, wrong = move_once("bench.kv.seam", options_of(transport))
    assert wrong == 0
    assert sender.began_s is not None
    assert receiver.ended_s is not None
    assert sender.began_s < receiver.ended_s
