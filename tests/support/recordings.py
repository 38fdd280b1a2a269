"""Recordings of traffic that never was, written as a router writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.latency.step import StepCost, Table
from core.policy.context import ClassTarget, PolicyContext, PoolFacts
from core.recording import Recorded, RecordedWorker, Setting, request_fields, setting_fields
from core.types import Role
from sim.past import case_of
from sim.recording import read_recording

# A prompt token takes 0.1 ms, a decode step 10 ms.
COST = StepCost(Table.line(0.002, 1e-4), Table.constant(0.0), Table.constant(0.01), Table.constant(0.0))
CONTEXT = PolicyContext(
    pools={role: PoolFacts(COST, 64, 2048) for role in Role},
    targets={"chat": ClassTarget(0.25, 0.02), "batch": ClassTarget(5.0, 0.1)},
    overflow=True,
)
BEGIN_S = 1_000_000.0


def workers(prefill: int = 1, decode: int = 1) -> tuple[RecordedWorker, ...]:
    return tuple(
        RecordedWorker(f"{role.value}-{number}", role, 4096, 32, 1)
        for role, count in ((Role.DECODE, decode), (Role.PREFILL, prefill))
        for number in range(count)
    )


def requests(count: int = 240, rate: float = 8.0, *, seed: int = 0) -> list[Recorded]:
    """Poisson arrivals of prompts of 400 to 1000 tokens; every fourth is of class batch."""
    rng = np.random.default_rng(seed)
    at_s = BEGIN_S + np.cumsum(rng.exponential(1 / rate, count))
    return [
        Recorded(
            float(at), int(rng.integers(400, 1000)), int(rng.integers(5, 40)), "batch" if i % 4 == 3 else "chat", "ok",
            True, 0.1, 0.01, 0.5, "prefill-0", "decode-0", False,
        )
        for i, at in enumerate(at_s)
    ]  # fmt: skip


def written(path: Path, found: Iterable[Recorded], *settings: Setting) -> Path:
    """Write a file; without settings, of one pair from the beginning."""
    told = settings or (Setting(BEGIN_S, "slo-aware", CONTEXT, workers()),)
    lines = [*map(setting_fields, told), *map(request_fields, found)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def as_simulated(path: Path, found: list[Recorded], *settings: Setting) -> Path:
    """Write a past that the simulator is right about: what became of requests is what it says."""
    case = case_of(read_recording(written(path, found, *settings)))
    outcome = case.run()
    kept = outcome.met(case.targets)
    real = [
        replace_times(request, float(outcome.ttft_s[i]), float(outcome.tpot_s[i]), kept=bool(kept[i]))
        for i, request in enumerate(found)
    ]
    return written(path, real, *settings)


def replace_times(request: Recorded, ttft_s: float, tpot_s: float, *, kept: bool) -> Recorded:
    known = np.isfinite(ttft_s)
    return request._replace(
        kept=kept,
        outcome="ok" if known else "rejected",
        ttft_s=ttft_s if known else None,
        tpot_s=tpot_s if known else None,
    )


def later(setting: Setting, seconds: float, *of: RecordedWorker) -> Setting:
    return replace(setting, at_s=setting.at_s + seconds, workers=of)
