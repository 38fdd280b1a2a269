"""What a decider is told, gathered: the router's account of the traffic, and the controller's of the workers.

Owns the question to the router and the sums since the question before. Must not decide.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from cluster.front import front_at
from cluster.members import Member
from cluster.router_probe import ask_traffic
from core.control.actions import (
    ClassReport,
    MeasuredCosts,
    Observation,
    PoolSizes,
    RequestSample,
    SizeLimits,
    WorkerReport,
)
from core.errors import BatonError

_COSTS: Final = TypeAdapter(MeasuredCosts)

EXPECTED_START_S: Final = 60.0  # of a worker, while none was measured
EXPECTED_FLIP_S: Final = 10.0
_COUNTS: Final = ("num_arrived", "num_ended", "num_kept", "num_refused")


@dataclass(frozen=True, slots=True)
class PoolsNow:
    """What the controller knows beside the router."""

    members: tuple[Member, ...]
    wanted: PoolSizes
    limits: SizeLimits
    start_s: float | None
    flip_s: float | None
    is_changing: bool


class TrafficObserver:
    """Asks one router, again and again."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = Path(run_dir)
        self.forget()

    def forget(self) -> None:
        """Begin anew: what was before the next question is of no interest."""
        self._life = ""  # of the router that was asked before
        self._number = 0  # of the latest sample
        self._counts: dict[str, tuple[int, ...]] = {}  # of each class, as told before
        self._asked_s = time.monotonic()

    async def observe(self, router_address: str, pools: PoolsNow) -> Observation | None:
        """Gather what is since the observation before; None when the router does not answer, or is a new one."""
        try:
            front = await asyncio.to_thread(front_at, router_address, self._run_dir)
            raw = json.loads(await asyncio.to_thread(ask_traffic, front, self._number))
        except (OSError, http.client.HTTPException, ValueError, BatonError):
            return None
        is_known, self._life, self._number = raw["life"] == self._life, raw["life"], raw["number"]
        counts = {entry["slo_class"]: tuple(entry[name] for name in _COUNTS) for entry in raw["classes"]}
        before, self._counts = self._counts, counts
        window_s, self._asked_s = time.monotonic() - self._asked_s, time.monotonic()
        if not is_known:  # its counts begin anew; what it was asked after means nothing to it
            return None
        return Observation(
            now_s=self._asked_s,
            window_s=window_s,
            wanted=pools.wanted,
            limits=pools.limits,
            workers=tuple(_worker(member, raw["workers"]) for member in pools.members),
            classes=tuple(_class(entry, before[entry["slo_class"]]) for entry in raw["classes"]),
            samples=tuple(sorted((RequestSample(*entry) for entry in raw["samples"]), key=lambda s: s.arrived_s)),
            num_ended=raw["num_ended"],
            num_held=raw["num_held"],
            held_tokens=raw["held_tokens"],
            least_slack_s=raw["least_slack_s"],
            start_s=EXPECTED_START_S if pools.start_s is None else pools.start_s,
            flip_s=EXPECTED_FLIP_S if pools.flip_s is None else pools.flip_s,
            is_changing=pools.is_changing,
            costs=None if raw["costs"] is None else _COSTS.validate_python(raw["costs"]),
        )


def _worker(member: Member, loads: dict[str, dict[str, Any]]) -> WorkerReport:
    return WorkerReport(
        worker_id=member.worker_id,
        role=member.role,
        state=member.phase.value,
        since_s=member.since_s,
        role_since_s=member.role_since_s,
        block_size=member.hello.fingerprint.block_size if member.hello else 0,
        **loads.get(member.worker_id, {}),
    )


def _class(entry: dict[str, Any], before: tuple[int, ...]) -> ClassReport:
    since = {name: entry[name] - had for name, had in zip(_COUNTS, before, strict=True)}
    targets = {name: entry[name] for name in ("slo_class", "ttft_s", "tpot_s", "attainment")}
    return ClassReport(**targets, **since)
