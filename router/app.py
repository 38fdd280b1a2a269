"""What the HTTP server calls: relayed routes without ASGI, everything else by FastAPI.

Owns which handler gets a request. Must not know how requests are served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from core.types import WorkerRecord
from router.body import no_facts
from router.dispatcher import Dispatcher
from router.exchange import Exchange
from router.routes import OPERATIONS, WORKER_METRICS, Operation

_METRICS: Final = "/metrics"
_ENGINE_METRICS: Final = Operation("GET", _METRICS, "", no_facts, generates=False)


class RelayedRoutes:
    """Implements router.http_protocol.Relay: the requests that workers answer."""

    def __init__(self, dispatcher: Dispatcher, announced: Callable[[], tuple[WorkerRecord, ...]]) -> None:
        self._dispatcher = dispatcher
        self._announced = announced

    def path_of(self, method: str, path: str) -> str | None:
        """Tell under which path a worker serves a request; None: no worker does."""
        operation = OPERATIONS.get(path)
        if operation is not None:
            return path if operation.method == method else None
        return _METRICS if method == "GET" and self._whose_metrics(path) is not None else None

    def serve(self, exchange: Exchange, path: str) -> None:
        """Begin to serve a request."""
        operation = OPERATIONS.get(path)
        if operation is not None:
            self._dispatcher.begin(exchange, operation)
        else:
            self._dispatcher.begin(exchange, _ENGINE_METRICS, self._whose_metrics(path))

    def _whose_metrics(self, path: str) -> str | None:
        match = WORKER_METRICS.match(path)
        if match is None:
            return None
        return next((r.worker_id for r in self._announced() if r.worker_id == match[1]), None)
