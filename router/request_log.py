"""One line of JSON for each ended request, written in batches.

Owns the fields of that line, and when lines go to the log: finding its way through `logging` costs more than the line
itself, so lines share it. Must not decide what happened to a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

import orjson

from router.life import Life
from router.record import RequestRecord
from router.timeline import STAGES

BATCH_LINES: Final = 64
LATEST_S: Final = 0.5  # a line waits no longer for others
_STAGES: Final = "{" + ",".join(f'"{stage}":%d' for stage in STAGES) + "}"  # takes half the time of a dictionary

log = logging.getLogger("router.request")


class RequestLog:
    """Takes lines and passes them on, some together."""

    def __init__(self) -> None:
        self._lines = bytearray()  # of requests that ended, each with its line end, and not passed on
        self._num_lines = 0
        self._timer: asyncio.TimerHandle | None = None  # set only while there are lines

    def add(self, record: RequestRecord, life: Life) -> None:
        """Take the line of an ended request."""
        if not log.isEnabledFor(logging.INFO):
            return
        # Copied at once: to keep so many lines as objects takes longer than to make them, for want of warm memory.
        self._lines += _line(record, life)
        self._num_lines += 1
        if self._num_lines >= BATCH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATEST_S, self.flush)

    def flush(self) -> None:
        """Pass all lines on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            text = self._lines[:-1].decode()
            self._lines.clear()
            self._num_lines = 0
            log.info("%s", text)


def _line(record: RequestRecord, life: Life) -> bytes:
    forecast, line = record.forecast, record.timeline
    ttft_s, tpot_s = record.ttft_s, record.tpot_s
    sender = record.prefill_facts or record.answering_facts
    return orjson.dumps(
        {
            "event": "request",
            "time": int(time.time() * 1000) / 1000,
            "request_id": record.request_id,
            "tenant": record.tenant,
            "path": record.path,
            "status": record.status,
            "outcome": record.outcome,
            "error": record.error or None,
            "slo_class": record.slo.name,
            "slo_met": record.kept,
            "leg": life.leg,
            "prefill": life.prefill,
            "decode": life.decode,
            "reason": life.reason,
            "attempts": life.attempts,
            "held": record.num_holds,
            "stream": life.facts.stream,
            "prompt_tokens_estimate": life.facts.prompt_tokens,
            "cached_tokens": None if sender is None else sender.cached_tokens,
            "output_tokens": record.output_tokens,
            "ttft_ms": None if ttft_s is None else _ms(ttft_s),
            "tpot_ms": None if tpot_s is None else _ms(tpot_s),
            "e2e_ms": _ms(record.e2e_s),
            "predicted_ttft_ms": None if forecast is None else _ms(record.predicted_ttft_s),
            "predicted_tpot_ms": None if forecast is None else _ms(forecast.tpot_s),
            "until": None if line is None else line.until,
            "stages_us": None if line is None else orjson.Fragment(_STAGES % line.stages_us),
            "body_bytes": life.body_bytes,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _ms(seconds: float) -> float:
    return int(seconds * 1e6 + 0.5) / 1000
