"""Where the time to the first token went, as a Baton router tells it on /metrics.

Owns the reading of Prometheus text before and after a run, and the difference. Other traffic of the same time is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.serving.connection import ConnectionPool
from bench.serving.document import ask
from bench.serving.endpoint import Endpoint
from core.errors import BatonError

_SAMPLE: Final = re.compile(r'^baton_ttft_stage_seconds_(sum|count)\{[^}]*stage="([^"]+)"[^}]*\} (\S+)', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stages:
    """Mean time of each stage, in ms, over the requests of a run; they add up to the mean TTFT as the router saw it."""

    mean_ms: Mapping[str, float]
    requests: int


@dataclass(frozen=True, slots=True)
class StageTotals:
    """What a router has counted since it started."""

    sums_s: Mapping[str, float]
    requests: int


async def stage_totals(pool: ConnectionPool, endpoint: Endpoint) -> StageTotals | None:
    """Read the totals; None where the endpoint is no Baton router, or shows no metrics."""
    try:
        answer = await ask(pool, endpoint, "/metrics")
    except BatonError:
        return None
    return totals_in(answer.body.decode(errors="replace")) if answer.status == 200 else None


def totals_in(text: str) -> StageTotals | None:
    """Find the totals in the text of /metrics; None: there are none."""
    sums_s: dict[str, float] = {}
    counts: list[float] = []
    for kind, stage, value in _SAMPLE.findall(text):
        if kind == "sum":
            sums_s[stage] = float(value)
        else:
            counts.append(float(value))
    return StageTotals(sums_s, int(max(counts, default=0))) if sums_s else None


def stages_between(before: StageTotals | None, after: StageTotals | None) -> Stages | None:
    """Divide what was added by the requests that were; None where nothing was."""
    if before is None or after is None or after.requests <= before.requests:
        return None
    count = after.requests - before.requests
    added = {name: (total - before.sums_s.get(name, 0.0)) / count * 1e3 for name, total in after.sums_s.items()}
    return Stages(added, count)
