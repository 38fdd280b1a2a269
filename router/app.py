"""The ASGI application: relayed routes by a plain dictionary look-up, everything else by FastAPI.

Owns which handler gets a request. FastAPI's own routing costs as much as a whole dispatch, so the routes that carry
load never see it. Must not know how requests are served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from core.types import WorkerRecord
from router.body import no_facts
from router.dispatcher import Dispatcher
from router.exchange import Exchange
from router.routes import OPERATIONS, WORKER_METRICS, Operation

_ENGINE_METRICS: Final = Operation("GET", "/metrics", "", no_facts, generates=False)


class RouterApp:
    """What the HTTP server calls for every request."""

    def __init__(
        self, *, dispatcher: Dispatcher, control: ASGIApp, announced: Callable[[], tuple[WorkerRecord, ...]]
    ) -> None:
        self._dispatcher = dispatcher
        self._announced = announced
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._control(scope, receive, send)
            return
        path: str = scope["path"]
        operation = OPERATIONS.get(path)
        if operation is not None and operation.method == scope["method"]:
            await self._dispatcher.serve(Exchange(scope, receive, send, path), operation)
            return
        worker_id = self._whose_metrics(scope["method"], path)
        if worker_id is not None:
            exchange = Exchange(scope, receive, send, "/metrics")
            await self._dispatcher.serve(exchange, _ENGINE_METRICS, worker_id)
            return
        await self._control(scope, receive, send)

    def _whose_metrics(self, method: str, path: str) -> str | None:
        match = WORKER_METRICS.match(path)
        if match is None or method != "GET":
            return None
        return next((r.worker_id for r in self._announced() if r.worker_id == match[1]), None)
