"""What the router tells the controller, which sizes the pools: requests that ended, one by one, and the load there is.

Owns the bounded memory of ended requests and the form of GET /traffic. Must not decide anything. Times are those of
time.monotonic, which router and controller share: they run on one machine.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, NamedTuple

import orjson
from fastapi import FastAPI, Query, Request, Response
from starlette.exceptions import HTTPException

from core.control.actions import MAX_SAMPLES
from core.policy.context import PolicyContext
from core.router_spec import SLOTarget
from core.types import ClusterView, Role
from router.record import RequestRecord


class Sample(NamedTuple):
    """One request that ended, in the order of the fields of core.control.actions.RequestSample."""

    arrived_s: float
    slo_class: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    waited_s: float
    kept: bool | None
    outcome: str


class ClassCounts:
    """One class since the router began."""

    __slots__ = ("num_arrived", "num_ended", "num_kept", "num_refused", "target")

    def __init__(self, target: SLOTarget) -> None:
        self.target = target
        self.num_arrived = 0
        self.num_ended = 0  # of which the SLO can be told
        self.num_kept = 0
        self.num_refused = 0


class TrafficMeter:
    """Counts requests and keeps the latest that ended."""

    def __init__(self, targets: tuple[SLOTarget, ...]) -> None:
        self._life = secrets.token_hex(8)  # tells this router from the one before, whose counts were others
        self._classes = {target.name: ClassCounts(target) for target in targets}
        self._samples: deque[Sample] = deque(maxlen=2 * MAX_SAMPLES)
        self._num_samples = 0  # so far; the latest has this number

    def began(self, record: RequestRecord) -> None:
        """Count a request that arrived."""
        if (counts := self._classes.get(record.slo.name)) is not None:
            counts.num_arrived += 1

    def ended(self, record: RequestRecord) -> None:
        """Keep what matters of a request that ended."""
        counts = self._classes.get(record.slo.name)
        if counts is None:
            return
        counts.num_refused += record.outcome == "rejected"
        if record.kept is not None:
            counts.num_ended += 1
            counts.num_kept += record.kept
        facts = record.prefill_facts or record.answering_facts
        asked = 0 if record.shape is None else record.shape.prompt_tokens
        self._num_samples += 1
        self._samples.append(
            Sample(
                record.marks.arrived_s,
                record.slo.name,
                asked if facts is None else facts.prompt_tokens,
                0 if facts is None else facts.cached_tokens,
                record.output_tokens,
                record.actual_ttft_s,
                record.tpot_s,
                record.waited_s,
                record.kept,
                record.outcome,
            )
        )

    def report(self, view: ClusterView, after: int, context: PolicyContext) -> dict[str, object]:
        """Tell of the requests that ended after the one numbered `after`, of the load in `view`, costs in `context`."""
        now_s = time.monotonic()
        num_new = min(self._num_samples - after, len(self._samples)) if after <= self._num_samples else 0
        new = list(self._samples)[len(self._samples) - num_new :]
        step = max(1, -(-len(new) // MAX_SAMPLES))
        held = view.held
        return {
            "life": self._life,
            "now_s": now_s,
            "number": self._num_samples,
            "num_ended": max(0, self._num_samples - after),
            "samples": [tuple(sample) for sample in new[::step]],  # orjson writes no named tuples
            "classes": [
                {
                    "slo_class": name,
                    "ttft_s": counts.target.ttft_s,
                    "tpot_s": counts.target.tpot_s,
                    "attainment": counts.target.attainment,
                    "num_arrived": counts.num_arrived,
                    "num_ended": counts.num_ended,
                    "num_kept": counts.num_kept,
                    "num_refused": counts.num_refused,
                }
                for name, counts in sorted(self._classes.items())
            ],
            "workers": {
                worker.record.worker_id: {
                    "num_running": worker.state.num_running,
                    "num_waiting": worker.state.num_waiting,
                    "kv_blocks_used": worker.state.kv_blocks_used,
                    "kv_blocks_total": worker.state.kv_blocks_total,
                    "step_s": worker.state.step_s,
                    "owed_prompt_tokens": worker.inflight_prompt_tokens,
                    "context_tokens": worker.inflight_context_tokens,
                }
                for worker in view.workers
            },
            "num_held": len(held.keys_s),
            "held_tokens": held.tokens_before[-1],
            "least_slack_s": held.keys_s[0] - now_s if held.keys_s else None,
            "costs": _costs(context),
        }


def _costs(context: PolicyContext) -> dict[str, object] | None:
    """Tell what engine steps cost, as the policy in force reckons; None while one pool's are not known."""
    facts = [context.pools.get(role) for role in (Role.PREFILL, Role.DECODE)]
    prefill, decode = (None if fact is None else fact.cost for fact in facts)
    if prefill is None or decode is None:
        return None
    return {
        "prefill": asdict(prefill),
        "decode": asdict(decode),
        "request_overhead_s": context.request_overhead_s,
    }


def add_traffic(
    app: FastAPI,
    meter: TrafficMeter,
    view: Callable[[], ClusterView],
    context: Callable[[], PolicyContext],
    tenant_of: Callable[[Request], str | None],
) -> None:
    """Serve GET /traffic, to the operator; to all where nobody has keys."""

    @app.get("/traffic", response_class=Response, include_in_schema=False)
    async def traffic(request: Request, after: Annotated[int, Query(ge=0)] = 0) -> Response:
        """Tell of the requests that ended after the one of that number, and of the load there is."""
        if tenant_of(request):
            raise HTTPException(403, "this is for whoever runs the cluster")
        return Response(orjson.dumps(meter.report(view(), after, context())), media_type="application/json")
