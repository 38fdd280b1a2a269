from __future__ import annotations

import pytest

from bench.kv.figures import Results, verdicts
from bench.kv.pair import Taken
from bench.kv.systems import MEMCPY, PLAIN_GRPC, TCP2, TUNED_GRPC, at_seam, whole
from bench.router.figures import Over


def taken(system: str, ms: float, *, tokens: int = 4096, index: int = 0, layer_ms: float = 0.0) -> Taken:
    return Taken(system, tokens, index, tokens << 17, (ms / 1e3,), 0.1, 0.0, layer_ms)


def test_ratios_are_taken_within_a_round() -> None:
    results = Results(
        [
            taken(MEMCPY, 30, index=0),
            taken(MEMCPY, 60, index=1),  # a slow moment of the machine
            taken(whole("shm"), 40, index=0),
            taken(whole("shm"), 80, index=1),
            taken(whole("shm"), 10, index=2),  # nothing to compare with
        ]
    )
    ratio = results.ratio(whole("shm"), MEMCPY, 4096)
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((0.75, 0.75))
    assert results.ratio(whole("shm"), TCP2, 4096) is None


def test_what_was_asked_is_judged_by_the_median() -> None:
    results = Results(
        [
            taken(MEMCPY, 30),
            taken(at_seam("shm"), 40),
            taken(whole("shm"), 50),
            taken(TCP2, 100),
            taken(whole("tcp"), 100),
            taken(PLAIN_GRPC, 900),
            taken(TUNED_GRPC, 200),
            taken(whole("grpc"), 300),
            taken(whole("shm"), 0.4, tokens=64),
            taken(whole("tcp"), 3.1, tokens=64),
        ]
    )
    assert {verdict.label: verdict.holds for verdict in verdicts(results)} == {
        f"{at_seam('shm')} / {MEMCPY}, 4096 tokens": True,
        f"{whole('shm')} / {MEMCPY}, 4096 tokens": False,
        f"{whole('tcp')} / {TCP2}, 4096 tokens": True,
        f"{whole('grpc')} / {PLAIN_GRPC}, 4096 tokens": True,
        f"{whole('grpc')} / {TUNED_GRPC}, 4096 tokens": False,
        f"{whole('shm')}, 64 tokens, ms": True,
        f"{whole('tcp')}, 64 tokens, ms": False,
    }


def test_the_tail_may_be_one_layer_and_two_milliseconds() -> None:
    results = Results(
        [
            taken(whole("shm"), 64),
            *(taken(whole("shm"), ms, index=index, layer_ms=4) for index, ms in enumerate((3, 3.9, 9))),
            taken(whole("shm"), 50, layer_ms=1),  # sending takes longer than computing: shown, not judged
        ]
    )
    assert results.allowed_tail_ms(whole("shm"), 4096) == pytest.approx(4.0)
    (verdict,) = verdicts(results)
    assert verdict.holds
    assert verdict.found == Over(3, pytest.approx(3.9), 9)
    assert results.paces == ((4096, 1), (4096, 4))
