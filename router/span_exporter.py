"""Sends the spans of ended requests to a collector, from a thread of its own.

Owns the queue, its bound, the batches and what is done when the collector does not answer: spans are dropped and
counted by request, and requests never wait. Must not know how spans are made (router.tracing).
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections import deque
from typing import Final
from urllib.parse import urlsplit

from core.errors import ConfigError
from router.record import RequestRecord
from router.tracing import export_request, spans_of

TRACES_PATH: Final = "/v1/traces"
MAX_WAITING: Final = 4096  # requests
BATCH_REQUESTS: Final = 128
INTERVAL_S: Final = 1.0
SEND_S: Final = 5.0
CLOSE_S: Final = 2.0

log = logging.getLogger(__name__)


class SpanExporter:
    """A bounded queue of requests and the thread that empties it; `close` it."""

    def __init__(self, endpoint: str, *, max_waiting: int = MAX_WAITING, interval_s: float = INTERVAL_S) -> None:
        """Send to `endpoint`, a URL; one without a path gets that of OTLP. Raises ConfigError for what is no URL."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"router.otlp_endpoint: {endpoint!r} is no http or https URL; write one as http://127.0.0.1:4318"
            )
        self._is_tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = (parts.path if parts.path.strip("/") else TRACES_PATH) + (f"?{parts.query}" if parts.query else "")
        self._max_waiting = max_waiting
        self._interval_s = interval_s
        self._waiting: deque[RequestRecord] = deque()  # ended, and not yet taken into a batch
        self._wanted = threading.Event()  # there is a batch, or the thread is to end
        self._closing = False
        self._is_silent = False  # the latest batch failed, which was logged
        self._dropped_when_full = 0  # by the caller's thread
        self._dropped_unsent = 0  # by ours
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Count the requests whose spans nobody took."""
        return self._dropped_when_full + self._dropped_unsent

    def offer(self, record: RequestRecord) -> None:
        """Take the record of an ended request, or drop it when too many wait."""
        if len(self._waiting) >= self._max_waiting:
            self._dropped_when_full += 1
            return
        self._waiting.append(record)
        if len(self._waiting) >= BATCH_REQUESTS:
            self._wanted.set()

    def close(self) -> None:
        """Send what waits, for CLOSE_S at most and not to a collector that fails.

        Blocks, so call it from a thread or when nothing is served.
        """
        self._closing = True
        self._wanted.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            self._wanted.wait(self._interval_s)
            self._wanted.clear()
            while self._waiting and not (self._closing and self._is_silent):
                self._send_batch()
            if self._closing:
                break

    def _send_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(BATCH_REQUESTS, len(self._waiting)))]
        spans = [span for record in batch for span in spans_of(record)]
        try:
            self._post(export_request(spans))
            self._is_silent = False
        except (OSError, http.client.HTTPException) as exc:
            self._dropped_unsent += len(batch)
            if not self._is_silent:
                self._is_silent = True
                log.warning("the trace collector at %s does not take spans: %s", self._host, exc)

    def _post(self, body: bytes) -> None:
        kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=SEND_S)
        try:
            connection.request("POST", self._path, body, {"content-type": "application/json"})
            status = connection.getresponse().status
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise http.client.HTTPException(f"it answered {status}")
