"""Request lines come whole and in order, in batches, and none waits for long."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.request_log import BATCH_LINES, LATEST_S, RequestLog
from router.timeline import STAGES
from tests.support.records import begun, held, life, streamed


def lines(caplog: pytest.LogCaptureFixture) -> list[list[str]]:
    """The request ids of each record of the log."""
    return [[json.loads(line)["request_id"] for line in r.message.splitlines()] for r in caplog.records]


async def test_a_line_holds_prediction_and_stages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "router.request")
    log = RequestLog()
    log.add(streamed(held(begun())), life())
    log.flush()
    told = json.loads(caplog.records[0].message)
    assert (told["ttft_ms"], told["tpot_ms"], told["e2e_ms"]) == (80.0, 20.0, 460.0)
    assert (told["predicted_ttft_ms"], told["predicted_tpot_ms"], told["held"]) == (76.0, 20.0, 1)
    assert tuple(told["stages_us"]) == STAGES
    assert sum(told["stages_us"].values()) == 80_000
    assert (told["cached_tokens"], told["slo_met"], told["outcome"], told["error"]) == (128, True, "ok", None)


async def test_lines_wait_for_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "router.request")
    log = RequestLog()
    ids = [f"r{number}" for number in range(BATCH_LINES + 3)]
    for request_id in ids:
        log.add(streamed(held(begun(request_id))), life())
    assert lines(caplog) == [ids[:BATCH_LINES]]
    log.flush()
    assert lines(caplog) == [ids[:BATCH_LINES], ids[BATCH_LINES:]]
    log.flush()
    assert len(caplog.records) == 2


async def test_no_line_waits_for_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "router.request")
    RequestLog().add(streamed(held(begun())), life())
    assert not caplog.records
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    async with asyncio.timeout(LATEST_S + 5):
        while not caplog.records:
            woken = asyncio.Event()
            loop.call_later(0.01, woken.set)
            await woken.wait()
    assert loop.time() - begun_s >= LATEST_S - 0.01
    assert lines(caplog) == [["r1"]]


async def test_nothing_is_made_where_nobody_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "router.request")
    RequestLog().add(streamed(held(begun())), life())
    assert not caplog.records
