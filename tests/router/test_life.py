"""What is measured of a request, from the bytes that passed and when."""

from __future__ import annotations

import asyncio

import pytest

from core.router_spec import SLOTarget
from router.body import BodyFacts
from router.exchange import Exchange
from router.life import Life, Timing
from router.routes import OPERATIONS

TARGET = SLOTarget("interactive", ttft_s=1.0, tpot_s=0.1)


class NoConnection:
    """Fails whoever writes to it."""

    transport: asyncio.Transport

    def default_headers(self) -> bytes:
        raise AssertionError("nothing is sent")

    def on_response_complete(self) -> None:
        raise AssertionError("nothing is sent")


def life(path: str = "/v1/completions", **facts: bool) -> Life:
    exchange = Exchange(NoConnection(), method="POST", path=path)
    new = Life(exchange, OPERATIONS[path], TARGET, 10.0)
    new.facts = BodyFacts(1, **facts)  # type: ignore[arg-type]
    return new


def test_stream_is_timed_from_its_chunks() -> None:
    request = life(stream=True)
    assert request.chunk(b"data: 1\n\n", 10.5) is None
    assert request.chunk(b"data: 2\n\ndata: 3\n\n", 11.0) == 0.5
    assert request.chunk(b"data: 4\n\ndata: [DONE]\n\n", 11.25) == 0.25
    assert request.timing() == Timing(e2e_s=1.25, ttft_s=0.5, tpot_s=0.25, output_tokens=4)


def test_events_without_a_token_do_not_count() -> None:
    request = life("/v1/chat/completions", stream=True, include_usage=True)
    request.chunk(b"data: role\n\ndata: 1\n\n", 10.5)
    request.chunk(b"data: 2\n\ndata: usage\n\ndata: [DONE]\n\n", 11.0)
    assert request.timing() == Timing(e2e_s=1.0, ttft_s=0.5, tpot_s=0.5, output_tokens=2)


def test_single_token_has_no_tpot() -> None:
    request = life(stream=True)
    request.chunk(b"data: 1\n\ndata: [DONE]\n\n", 10.5)
    assert request.timing() == Timing(e2e_s=0.5, ttft_s=0.5, tpot_s=None, output_tokens=1)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"usage":{"prompt_tokens":4,"completion_tokens":31,"total_tokens":35}}', 31),
        (b'{"usage": {"completion_tokens": 31}}', 31),
        (b'{"usage":{"completion_tokens":null}}', 0),
        (b"{}", 0),
    ],
)
def test_document_tells_its_tokens(body: bytes, tokens: int) -> None:
    request = life()
    request.whole_body(body, 12.0)
    assert request.timing() == Timing(e2e_s=2.0, ttft_s=None, tpot_s=None, output_tokens=tokens)


@pytest.mark.parametrize(
    ("timing", "met"),
    [
        (Timing(9.0, 1.0, 0.1, 50), True),
        (Timing(9.0, 1.01, 0.1, 50), False),
        (Timing(9.0, 1.0, 0.11, 50), False),
        (Timing(0.5, 0.5, None, 1), True),
        (Timing(1.9, None, None, 10), True),  # 1.0 s + 9 tokens of 0.1 s
        (Timing(1.91, None, None, 10), False),
        (Timing(1.0, None, None, 0), True),
    ],
)
def test_slo_is_met_when_both_targets_are(timing: Timing, met: bool) -> None:
    assert timing.meets(TARGET) is met
