"""The control routes: health, status, metrics, workers, explanations, version, schema; and the answer to every unknown
route.

Owns what FastAPI serves. None of it is on the path of a token. Must not relay to workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Final

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from core.policy.breaker import Breakers
from core.policy.calibration import Calibration
from core.policy.context import PolicyContext
from core.policy.pair_trust import PairReport
from core.types import ClusterView, WorkerView
from router import VERSION
from router.console.feed import ConsoleFeed
from router.console.routes import add_console
from router.errors import error_json
from router.explain import Explainer
from router.explain_routes import add_explain, add_status, without_keys
from router.health import Readiness
from router.metrics import RouterMetrics
from router.openapi import components, relayed_paths
from router.routes import OPERATIONS, WORKER_METRICS
from router.traffic import TrafficMeter, add_traffic

_TITLE: Final = "Baton router"


class HealthBody(BaseModel):
    """Whether requests can be served."""

    status: Annotated[str, Field(description="ok, degraded, starting, unavailable or stopping")]
    reason: str
    prefill_workers: int
    decode_workers: int


class LiveBody(BaseModel):
    """The process runs."""

    status: str = "ok"


class VersionBody(BaseModel):
    """What runs here; `version` is the engine's, as vLLM's own route has it."""

    version: str | None
    baton: str


class LoadBody(BaseModel):
    """How busy this router is, in the form of vLLM's own route."""

    server_load: Annotated[int, Field(description="requests in flight")]


class WorkerBody(BaseModel):
    """One connected worker."""

    worker_id: str
    role: str
    epoch: int
    address: str
    node: str
    model: str
    engine: str
    draining: bool
    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    inflight_requests: Annotated[int, Field(description="sent by this router and not ended")]
    breaker: Annotated[str, Field(description="closed, open (left out after failures), or half-open (on trial)")]


class ScrapeTarget(BaseModel):
    """One group of targets, as Prometheus' HTTP service discovery has them."""

    targets: Annotated[list[str], Field(description="host:port, by which this router was asked")]
    labels: dict[str, str]


class WorkersBody(BaseModel):
    """The workers connected to this router."""

    workers: list[WorkerBody]


def control_app(
    *,
    readiness: Readiness,
    metrics: RouterMetrics,
    view: Callable[[], ClusterView],
    breakers: Breakers,
    explainer: Explainer | None = None,
    traffic: TrafficMeter | None = None,
    context: Callable[[], PolicyContext] = PolicyContext,
    calibration: Calibration | None = None,
    tenant_of: Callable[[Request], str | None] = without_keys,
    num_inflight: Callable[[], int] | None = None,
    console: ConsoleFeed | None = None,
    pairs: Callable[[], Sequence[PairReport]] = tuple,
) -> FastAPI:
    """Make the application that serves everything but the relayed routes.

    `tenant_of` names the tenant that a control request's key stands for, None for who sees all, and raises
    HTTPException where it stands for nobody.
    """
    app = FastAPI(title=_TITLE, version=VERSION, docs_url=None, redoc_url=None)
    _add_health(app, readiness)
    _add_reports(app, metrics, view, breakers)
    add_status(app, metrics, calibration, view, pairs)
    if explainer is not None:
        add_explain(app, explainer, tenant_of)
    if traffic is not None:
        add_traffic(app, traffic, view, context, tenant_of)
    if num_inflight is not None:
        _add_load(app, num_inflight)
    if console is not None:
        add_console(app, console, tenant_of)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    return app


def _add_health(app: FastAPI, readiness: Readiness) -> None:
    async def health() -> Response:
        """Tell whether requests can be served; ready once a compatible pair of workers was there."""
        found = readiness.check()
        body = HealthBody(
            status=found.status,
            reason=found.reason,
            prefill_workers=found.num_prefill,
            decode_workers=found.num_decode,
        )
        headers = {} if found.can_serve else {"retry-after": "1"}
        return JSONResponse(body.model_dump(), 200 if found.can_serve else 503, headers)

    async def live() -> LiveBody:
        """Tell that the process runs."""
        return LiveBody()

    for path in ("/health", "/ready"):
        responses: dict[int | str, dict[str, object]] = {503: {"model": HealthBody}}
        app.add_api_route(path, health, name=path[1:], response_model=HealthBody, responses=responses)
        app.add_api_route(path, health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/live", live)
    app.add_api_route("/live", live, methods=["HEAD"], include_in_schema=False)


def _add_reports(app: FastAPI, metrics: RouterMetrics, view: Callable[[], ClusterView], breakers: Breakers) -> None:
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def report_metrics() -> Response:
        """Write this router's metrics in Prometheus text."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/metrics/workers")
    async def worker_targets(request: Request) -> list[ScrapeTarget]:
        """List the workers' metrics for Prometheus to find (http_sd_configs): each is scraped through this router."""
        return [
            ScrapeTarget(
                targets=[request.url.netloc],
                labels={
                    "__metrics_path__": f"/workers/{w.record.worker_id}/metrics",
                    "worker": w.record.worker_id,
                    "role": w.record.role,
                },
            )
            for w in view().workers
        ]

    @app.get("/version")
    async def version() -> VersionBody:
        """Name the versions of engine and router."""
        engines = sorted({w.hello.fingerprint.engine for w in view().workers})
        return VersionBody(version=engines[0].split()[-1] if engines else None, baton=VERSION)

    @app.get("/workers")
    async def workers() -> WorkersBody:
        """List the workers connected to this router."""
        now_s = time.monotonic()
        return WorkersBody(workers=[_worker_body(w, breakers.state(w.record.worker_id, now_s)) for w in view().workers])


def _add_load(app: FastAPI, num_inflight: Callable[[], int]) -> None:
    @app.get("/load")
    async def load() -> LoadBody:
        """Count the requests in flight."""
        return LoadBody(server_load=num_inflight())


def _worker_body(worker: WorkerView, breaker: str) -> WorkerBody:
    record, state = worker.record, worker.state
    return WorkerBody(
        worker_id=record.worker_id,
        role=record.role,
        epoch=record.epoch,
        address=record.address,
        node=record.node,
        model=worker.hello.model,
        engine=worker.hello.fingerprint.engine,
        draining=state.draining,
        running=state.num_running,
        waiting=state.num_waiting,
        kv_blocks_used=state.kv_blocks_used,
        kv_blocks_total=state.kv_blocks_total,
        inflight_requests=worker.inflight_requests,
        breaker=breaker,
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown route or a wrong method in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    code, headers = error.status_code, dict(error.headers or {})
    path, method = request.url.path, request.method
    relayed, worker = OPERATIONS.get(path), WORKER_METRICS.match(path)
    if code == 404 and (relayed is not None or (worker is not None and method != "GET")):
        code, headers = 405, {"Allow": "GET" if relayed is None else relayed.method}
    message = str(error.detail)
    if code == 404:
        message = f"no route {method} {path}" if worker is None else f"no worker is called {worker[1]!r}"
    elif code == 405:
        message = f"{path} takes {headers.get('Allow', 'another method')}, not {method}"
    body = error_json(message, kind="invalid_request_error", code=code)
    return Response(body, code, headers, media_type="application/json")


async def _internal_error(request: Request, error: Exception) -> Response:
    body = error_json("internal error", kind="baton_error", code=500)
    return Response(body, 500, media_type="application/json")


def _schema(app: FastAPI) -> dict[str, object]:
    """Write the OpenAPI document of everything served, the relayed routes included."""
    if app.openapi_schema is None:
        schema = get_openapi(title=_TITLE, version=VERSION, routes=app.routes)
        schema["paths"] |= relayed_paths()
        for kind, found in components().items():
            schema["components"].setdefault(kind, {}).update(found)
        app.openapi_schema = schema
    return app.openapi_schema
