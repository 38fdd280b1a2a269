"""What a watcher of the console gets: everything once, then what there is each second.

Owns who may see what (a tenant its own requests, the operator all), the number of watchers, and that equal watchers
share one rendering. Nothing is computed while there are none. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Final

import orjson

from core.errors import Overloaded
from core.policy.breaker import Breakers
from core.policy.calibration import Calibration
from core.router_spec import RouterSpec
from core.types import ClusterView, ControlDecision, WorkerRecord
from router import VERSION
from router.console.events import EventRing
from router.console.history import BUCKET_S, NUM_BUCKETS, History
from router.console.told import Told, class_told, ended_lately, request_told, transfers_told, workers_told
from router.explain import Explainer
from router.health import Readiness
from router.record import RequestRecord
from router.timeline import STAGES

INTERVAL_S: Final = 1.0
MAX_WATCHERS: Final = 16
SHOWN_RUNNING: Final = 10
SHOWN_ENDED: Final = 30
_CLOCK_GRAIN_S: Final = 0.002  # a timer may ring as much too early: event loops count in milliseconds
_LATEST_BUCKETS: Final = 2  # in each update: the one under way, and the one that it has just replaced

_Scope = str | None  # a tenant; None: who sees all


@dataclass(frozen=True, slots=True)
class Sources:
    """What the console reads; each is asked only while somebody watches."""

    view: Callable[[], ClusterView]
    announced: Callable[[], tuple[WorkerRecord, ...]]
    num_inflight: Callable[[], int]
    readiness: Readiness
    breakers: Breakers
    explainer: Explainer
    calibration: Calibration
    history: History
    decisions: Callable[[], tuple[ControlDecision, ...]] = tuple  # newest first; none while nobody tells this router


class ConsoleFeed:
    """Feeds every watcher; `close` ends them all."""

    def __init__(
        self,
        spec: RouterSpec,
        sources: Sources,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`clock` is that of requests' marks, `wall` counts from the epoch."""
        self._spec = spec
        self._from = sources
        self._clock = clock
        self._wall = wall
        self._interval_s = interval_s
        self._began_s = clock()
        self._events = EventRing()
        self._closing = asyncio.Event()
        self._num_watchers = 0
        self._rendered: dict[_Scope, tuple[float, bytes]] = {}  # of scopes that are watched, with its moment

    def check_room(self) -> None:
        """Make sure that one more may watch. Raises Overloaded."""
        if self._num_watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} consoles are open, which is all that this router feeds; close one")

    def open(self) -> None:
        """Begin to remember events."""
        self._events.open()

    def close(self) -> None:
        """End every watching; idempotent."""
        self._closing.set()
        self._events.close()

    async def watch(self, tenant: _Scope) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events until the router stops: `hello` with the last hour, then an `update` each second."""
        self._num_watchers += 1
        try:
            yield _event("hello", orjson.dumps(self._hello(tenant)))
            while not self._closing.is_set():
                yield _event("update", self._shared_update(tenant))
                await self._pause()
        finally:
            self._num_watchers -= 1
            if not self._num_watchers:
                self._rendered.clear()

    async def _pause(self) -> None:
        """Wait for the next whole interval, so that watchers wake together and share what is rendered."""
        now_s = self._clock()
        next_s = (math.floor(now_s / self._interval_s) + 1) * self._interval_s
        try:
            async with asyncio.timeout(next_s - now_s + _CLOCK_GRAIN_S):
                await self._closing.wait()
        except TimeoutError:
            return

    def _shared_update(self, tenant: _Scope) -> bytes:
        now_s = self._clock()
        known = self._rendered.get(tenant)
        if known is not None and now_s - known[0] < self._interval_s / 2:
            return known[1]
        data = orjson.dumps(self.update(tenant, now_s))
        self._rendered[tenant] = now_s, data
        return data

    def _hello(self, tenant: _Scope) -> Told:
        now_s = self._clock()
        return {
            "version": VERSION,
            "policy": self._spec.policy if tenant is None else "",
            "tenant": tenant,
            "stages": STAGES,
            "bucket_s": BUCKET_S,
            "buckets": NUM_BUCKETS,
            "history": self._rows(tenant, now_s, NUM_BUCKETS),
        }

    def update(self, tenant: _Scope, now_s: float) -> Told:
        """Tell how things are at `now_s`; a tenant is told of its own requests only."""
        source, epoch_s = self._from, self._wall()
        latest = ended_lately(source.explainer.latest(tenant), now_s)
        coverage = source.calibration.report()
        health = source.readiness.check()
        told: Told = {
            "at": round(epoch_s, 3),
            "slot": int(now_s // BUCKET_S),
            "health": {"status": health.status, "reason": health.reason if tenant is None else ""},
            "classes": [
                class_told(
                    target,
                    source.history,
                    tenant,
                    now_s=now_s,
                    up_s=now_s - self._began_s,
                    latest=latest,
                    coverage=coverage if tenant is None else (),
                )
                for target in self._spec.slo_classes
            ],
            "requests": [
                request_told(r, epoch_s=epoch_s, now_s=now_s, with_tenant=tenant is None) for r in self._shown(tenant)
            ],
            "history": self._rows(tenant, now_s, _LATEST_BUCKETS),
        }
        return told | self._of_cluster(now_s) if tenant is None else told

    def _shown(self, tenant: _Scope) -> list[RequestRecord]:
        """Choose the requests to show, the latest of each kind: running ones first."""
        running: list[RequestRecord] = []
        ended: list[RequestRecord] = []
        for record in self._from.explainer.latest(tenant):
            if not record.is_running:
                ended.append(record)
            elif len(running) < SHOWN_RUNNING:
                running.append(record)
            if len(ended) == SHOWN_ENDED:
                break
        return running + ended

    def _of_cluster(self, now_s: float) -> Told:
        """Tell what is nobody's in particular: only who sees all is told."""
        source, view = self._from, self._from.view()
        running = takewhile(lambda record: record.is_running, source.explainer.latest(None))
        return {
            "model": next((w.hello.model for w in view.workers), ""),
            "inflight": source.num_inflight(),
            "held": len(view.held.keys_s),
            "workers": workers_told(
                view.workers, source.announced(), lambda worker_id: source.breakers.state(worker_id, now_s)
            ),
            "transfers": transfers_told(running, now_s),
            "events": [asdict(event) for event in reversed(self._events.latest)],
            "decisions": [asdict(decision) for decision in source.decisions()],
        }

    def _rows(self, tenant: _Scope, now_s: float, buckets: int) -> dict[str, list[list[int]]]:
        history = self._from.history
        return {t.name: history.rows(tenant, t.name, now_s, buckets) for t in self._spec.slo_classes}


def _event(name: str, data: bytes) -> bytes:
    """Write one server-sent event; JSON has no line ends."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
