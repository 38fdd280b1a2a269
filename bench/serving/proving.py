"""The steps of a proof against a router that runs: parity while it is idle, then traffic, then what is left behind.

Owns their order and the traffic. Must not word anything, nor find the router.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from bench.serving.metrics import promises
from bench.serving.parity import check_parity
from bench.serving.proof import PlannedFor, Proof, RatePoint, foreseen, judge
from bench.serving.router_facts import explain_slowest, read_calibration
from bench.serving.session import BenchSpec, Session, Watch, at_rate
from core.errors import ConfigError

_PART: Final = 1 / 3  # of the time of the proof, for each further point of the curve
Ledger = Callable[[], Awaitable[tuple[str, ...] | None]]


@dataclass(frozen=True, slots=True)
class ProofPlan:
    """What is to be proven, and how."""

    config: str  # for people
    spec: BenchSpec  # its targets are the promise
    rate: float | None  # None: about one request at a time
    seconds: float
    curve: tuple[float, ...] = ()  # further rates, times `rate`
    plan: PlannedFor | None = None
    devices: int = 0


async def prove(session: Session, wanted: ProofPlan, ledger: Ledger, watch: Watch | None = None) -> Proof:
    """Look at everything. Raises ConfigError for what is no Baton router, BatonError when nothing answers."""
    await read_calibration(session)  # before minutes are spent
    _, _, api = await session.requests(wanted.spec)
    parity = await check_parity(session, wanted.spec, await session.vocabulary(wanted.spec, api))
    notes: tuple[str, ...] = ()
    rate = wanted.rate
    if rate is None:
        rate = await gentle_rate(session, wanted.spec)
        notes = (
            f"no rate is promised (plan.rate): shown at {rate:.3g} requests/s, about one at a time; --rate offers more",
        )
    spec = at_rate(wanted.spec, rate, seconds=wanted.seconds)
    result = await session.run(spec, watch=watch)
    findings = await ledger()
    calibration = await read_calibration(session)
    slowest = await explain_slowest(session, result.run)
    points = [await _point(session, wanted, rate * scale, number) for number, scale in enumerate(wanted.curve, 1)]
    own = RatePoint(rate, {c.name: c.attainment.mid for c in result.metrics.classes}, result.metrics.request_goodput)
    return Proof(
        config=wanted.config,
        url=session.endpoint.url,
        model=api.model,
        rate=rate,
        traffic=spec.dataset.name,
        classes=judge(result.metrics, result.run, spec.targets, wanted.plan),
        metrics=result.metrics,
        run=result.run,
        targets=spec.targets,
        parity=parity,
        ledger=findings,
        calibration=calibration,
        stages=result.stages,
        plan=wanted.plan,
        curve=tuple(sorted([own, *points], key=lambda point: point.rate)),
        devices=wanted.devices,
        foreseen=foreseen(result.run.timings),
        slowest=slowest,
        notes=(*notes, *result.notes, *result.metrics.remarks),
    )


async def _point(session: Session, wanted: ProofPlan, rate: float, number: int) -> RatePoint:
    """Measure another rate for the curve, with requests of its own."""
    seed = wanted.spec.options.seed + number
    found = await session.run(at_rate(wanted.spec, rate, seconds=wanted.seconds * _PART, seed=seed))
    return RatePoint(rate, {c.name: c.attainment.mid for c in found.metrics.classes}, found.metrics.request_goodput)


async def gentle_rate(session: Session, spec: BenchSpec) -> float:
    """Find a rate to begin with: about one request at a time. Raises ConfigError when none is answered."""
    alone = replace(
        spec,
        dataset=replace(spec.dataset, num_requests=3, seed=spec.dataset.seed + 1000),
        shape=replace(spec.shape, rate=math.inf, max_concurrency=1, keeps_times=False),
        num_warmups=0,
    )
    found = (await session.run(alone)).metrics
    if not found.completed:
        raise ConfigError(f"no request is answered: {found.errors[0][0] if found.errors else 'none was sent'}")
    return 1e3 / max(found.distributions["e2el"].mean.mid, 1.0)


def class_shares(spec: BenchSpec) -> tuple[tuple[str, float], ...]:
    """Give every promised class the same share, so that each can be judged."""
    return tuple((name, 1.0) for name in promises(spec.targets) if name)
