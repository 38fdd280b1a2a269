from __future__ import annotations

import pytest

from bench.kv.cache import LAYERS, Job, blocks_for
from bench.kv.systems import TRANSPORTS, options_of
from tests.support.kv_bench import TOKENS, move_once


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_block_lands_and_the_engine_hears_of_it(transport: str) -> None:
    sender, receiver, wrong = move_once("bench.kv.handover", options_of(transport))
    assert wrong == 0
    assert sender.began_s is not None
    assert receiver.ended_s is not None
    assert sender.began_s < receiver.ended_s


def test_with_a_pace_time_begins_when_the_last_layer_is_computed() -> None:
    pace_ms = 2.0
    at_once, _, _ = move_once("bench.kv.handover", {"transport": "grpc"})
    paced, verdict, wrong = move_once(
        "bench.kv.handover", {"transport": "grpc"}, job=Job(1, TOKENS, blocks_for(TOKENS), pace_ms)
    )
    assert wrong == 0
    assert at_once.began_s is not None
    assert paced.began_s is not None
    assert verdict.ended_s is not None
    assert at_once.began_s + LAYERS * pace_ms / 1e3 <= paced.began_s < verdict.ended_s
