"""What a running Baton says that a proof needs: calibration, workers, and the plan it was started by.

Owns the reading of /status, /workers and plan.json. Must not judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from bench.serving.document import ask
from bench.serving.load_run import Run
from bench.serving.proof import Calibration, PlannedFor, RatePoint, SlowestTimeline
from bench.serving.session import Session
from core.errors import BatonError, ConfigError
from sim.plan import Interval

PLAN_FILE: Final = "plan.json"  # cluster.startup writes it into the folder of the run


async def read_calibration(session: Session) -> tuple[Calibration, ...]:
    """Ask which predictions are believed. Raises ConfigError for what is no Baton router."""
    answer = await ask(session.pool, session.endpoint, "/status")
    if answer.status != 200:
        raise ConfigError(f"{session.endpoint.url}/status answered {answer.status}: this is no Baton router")
    try:
        return calibration_in(answer.json())
    except (KeyError, TypeError) as exc:
        raise BatonError(f"{session.endpoint.url}/status answers in another form than this version reads") from exc


def calibration_in(status: Mapping[str, Any]) -> tuple[Calibration, ...]:
    """Read /status. Raises KeyError or TypeError for another form."""
    return tuple(
        Calibration(
            found["name"],
            p["quantity"],
            p["coverage"],
            p["trusted"],
            p["reason"],
            p["outcomes"],
            (p["band_low"], p["band_high"]),
            p["refuted"],
        )
        for found in status["classes"]
        for p in found["predictions"]
    )


async def explain_slowest(session: Session, run: Run) -> SlowestTimeline | None:
    """Ask where the time of the request with the longest TTFT went; None where the router cannot tell any more."""
    known = [timing for timing in run.timings if timing.is_complete and timing.request_id]
    if not known:
        return None
    slowest = max(known, key=lambda timing: timing.ttft_ms)
    answer = await ask(session.pool, session.endpoint, f"/v1/requests/{quote(slowest.request_id, safe='')}/explain")
    line = answer.json().get("timeline")
    if answer.status != 200 or not isinstance(line, dict):
        return None
    try:
        stages = tuple((str(stage["name"]), float(stage["ms"])) for stage in line["stages"])
    except (KeyError, TypeError) as exc:
        raise BatonError(f"{session.endpoint.url} explains in another form than this version reads") from exc
    return SlowestTimeline(slowest.request_id, stages, slowest.e2el_ms - slowest.ttft_ms)


def read_plan(run_dir: Path) -> PlannedFor | None:
    """Read what the plan foresaw; None: the pools were named. Raises BatonError for a plan of another form."""
    try:
        text = (run_dir / PLAN_FILE).read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        return plan_in(json.loads(text))
    except (ValueError, KeyError, TypeError) as exc:
        raise BatonError(f"{run_dir / PLAN_FILE} is in another form than this version reads") from exc


def plan_in(plan: Mapping[str, Any]) -> PlannedFor | None:
    """Read the JSON of a plan (sim.plan_json); None: it found no pools. Raises KeyError or TypeError for other JSON."""
    best = plan["best"]
    if best is None:
        return None
    return PlannedFor(
        rate=plan["rate"],
        goodput=_interval(best["goodput"]),
        attainment={name: _interval(found) for name, found in best["attainment"].items()},
        curve=tuple(RatePoint(p["rate"], p["attainment"], p["goodput"]) for p in plan["curve"]),
        devices=int(best["gpus"]),
    )


def _interval(found: Mapping[str, float | None]) -> Interval:
    low, mid, high = (math.inf if found[end] is None else float(found[end] or 0.0) for end in ("low", "mid", "high"))
    return Interval(low, mid, high)
