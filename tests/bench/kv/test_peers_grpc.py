from __future__ import annotations

import pytest

from tests.support.kv_bench import move_once


@pytest.mark.parametrize("style", ["plain", "tuned"])
def test_every_block_arrives(style: str) -> None:
    _, receiver, wrong = move_once("bench.kv.peers_grpc", {"style": style})
    assert wrong == 0
    assert receiver.began_s is not None
    assert receiver.ended_s is not None
