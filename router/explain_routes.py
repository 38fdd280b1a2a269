"""GET /status and GET /v1/requests/{id}/explain: how promises are kept, and what became of one request.

Owns the form of both answers. Must not decide whose request it is: whoever knows keys says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from core.metrics import ATTAINMENT_WINDOWS_S
from core.policy.calibration import Calibration
from core.policy.pair_trust import PairReport, Trust
from core.types import ClusterView
from router.errors import error_json
from router.explain import Explainer
from router.explanation import Explanation
from router.metrics import RouterMetrics


class PredictionBody(BaseModel):
    """How the predictions of one quantity of one class did lately."""

    quantity: Annotated[str, Field(description="ttft or tpot")]
    outcomes: int
    coverage: Annotated[float | None, Field(description="share within the 90 % interval; null: no outcome yet")]
    band_low: float
    band_high: float
    interval_factor: Annotated[float, Field(description="half the width of the interval, in spreads that costs claim")]
    bias: Annotated[float | None, Field(description="median of actual over predicted")]
    refuted: Annotated[bool, Field(description="they were not: admission goes by measured attainment alone")]
    trusted: Annotated[bool, Field(description="enough outcomes were seen, and they were as predicted")]
    reason: str


class ClassBody(BaseModel):
    """One SLO class: what it is promised, what it got, and how well that was predicted."""

    name: str
    attainment_target: float
    attainment_60s: float | None
    attainment_1h: float | None
    predictions: list[PredictionBody]


class PairBody(BaseModel):
    """A prefill and a decode worker of equal fingerprints that get no requests together."""

    prefill: str
    decode: str
    state: Annotated[str, Field(description="untested, failed (its self-test did) or quarantined")]
    reason: str
    retry_in_s: Annotated[float, Field(description="until it is tested again")]


class StatusBody(BaseModel):
    """How the promises are kept, and who hands over to whom."""

    held_requests: int
    classes: list[ClassBody]
    trusted_pairs: Annotated[int, Field(description="pairs of workers that requests may go to")]
    other_pairs: list[PairBody]


class ErrorDetail(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """An error answer."""

    error: ErrorDetail


def without_keys(request: Request) -> str:
    """Name the tenant of a caller where nobody has keys: all requests are of the one without a name."""
    return ""


def add_status(
    app: FastAPI,
    metrics: RouterMetrics,
    calibration: Calibration | None,
    view: Callable[[], ClusterView],
    pairs: Callable[[], Sequence[PairReport]] = tuple,
) -> None:
    """Serve GET /status."""

    @app.get("/status")
    async def status() -> StatusBody:
        """Tell how the promises are kept, and whether predictions are trusted."""
        found = () if calibration is None else calibration.report()
        classes = []
        for name, target in metrics.attainment_targets.items():
            attained = [metrics.attainment(name, window_s) for window_s in ATTAINMENT_WINDOWS_S.values()]
            predictions = [
                PredictionBody(
                    quantity=c.quantity,
                    outcomes=c.outcomes,
                    coverage=c.coverage,
                    band_low=c.band[0],
                    band_high=c.band[1],
                    interval_factor=c.factor,
                    bias=c.bias,
                    refuted=c.is_refuted,
                    trusted=c.trusted,
                    reason=c.reason,
                )
                for c in found
                if c.slo_class == name
            ]
            classes.append(
                ClassBody(
                    name=name,
                    attainment_target=target,
                    attainment_60s=attained[0],
                    attainment_1h=attained[1],
                    predictions=predictions,
                )
            )
        known = pairs()
        others = [pair for pair in known if pair.trust is not Trust.TRUSTED]
        return StatusBody(
            held_requests=len(view().held.keys_s),
            classes=classes,
            trusted_pairs=len(known) - len(others),
            other_pairs=[
                PairBody(prefill=p.prefill, decode=p.decode, state=p.trust, reason=p.reason, retry_in_s=p.retry_in_s)
                for p in others
            ],
        )


def add_explain(app: FastAPI, explainer: Explainer, tenant_of: Callable[[Request], str | None]) -> None:
    """Serve explanations, to each tenant those of its own requests; to whom `tenant_of` calls None, all."""

    async def explain(request_id: str, request: Request) -> Response:
        """Tell why a request was routed as it was and where its time went; a tenant sees only its own requests."""
        found = explainer.explain(request_id, tenant_of(request))
        if found is None:
            message = f"no request {request_id!r} is known here; the router remembers router.explained_requests of them"
            body = error_json(message, kind="invalid_request_error", code=404, param="request_id")
            return Response(body, 404, media_type="application/json")
        return JSONResponse(dataclasses.asdict(found))

    app.add_api_route(
        "/v1/requests/{request_id:path}/explain",
        explain,
        name="explain",
        response_model=Explanation,
        responses={401: {"model": ErrorBody}, 404: {"model": ErrorBody}},
    )
