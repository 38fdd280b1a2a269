"""Keeps the router running: started, started again on the same port when it ends, given new settings.

Owns the router's host and process. Must not know workers: the router learns of them from the membership.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cluster import ray_actors
from cluster.cluster_events import EventLog
from cluster.cluster_status import MemberStatus, StartOrder
from cluster.host import RouterHost
from cluster.host_events import Ended, HostEvent, RouterReady, Spawned
from cluster.worker_places import STOP_MARGIN_S, first_line, stop_host
from core.config.specs import component_tls
from core.errors import StartFailed
from core.router_spec import RouterSpec

FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 3.0  # nobody is served meanwhile
STEADY_S: Final = 10.0  # a router that ran this long starts the back-off anew
FIND_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class RouterPlace:
    """What a controller that starts anew must know of the router."""

    host_name: str
    generation: int  # of its process
    port: int  # that it listens on; 0: it does not yet


class RouterKeeper:
    """Acts on the one router; from one event loop."""

    def __init__(self, order: StartOrder, log: EventLog, changed: Callable[[], None]) -> None:
        self._log = log
        self._changed = changed
        self._order = order
        self._fields: RouterSpec | None = None
        self._host: ray_actors.Handle | None = None
        self._place = RouterPlace("", 0, 0)
        self._follower: asyncio.Task[None] | None = None
        self._delay_s = FIRST_DELAY_S
        self._began_s = 0.0
        self._is_wanted_down = False  # its settings change: its end is no failure
        self.stopping = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        log_path = str(Path(order.run_dir) / f"{ray_actors.ROUTER}.log")
        self.status = MemberStatus(ray_actors.ROUTER, None, order.address, "starting", log_path=log_path)

    @property
    def place(self) -> RouterPlace:
        """Where it is."""
        return self._place

    @property
    def address(self) -> str:
        """Its host:port; empty until it listens."""
        return self.status.address

    def fields(self, order: StartOrder, membership_address: str) -> RouterSpec:
        """Write down what a router is told by `order`. Raises ConfigError."""
        base = Path(order.base)
        return RouterSpec.from_config(
            order.config,
            membership_address=membership_address,
            run_dir=order.run_dir,
            base=base,
            token=order.token,
            tls=component_tls(order.config, base),
        )

    def start(self, fields: RouterSpec) -> None:
        """Start the router; returns at once, `ready` tells of it."""
        self._fields = fields
        self._follower = asyncio.create_task(self._keep(), name="follow router")

    def rejoin(self, fields: RouterSpec, place: RouterPlace) -> None:
        """Take up the router that an earlier life of the controller left."""
        self._place = place
        self._host = ray_actors.find(place.host_name) if place.host_name else None
        if self._host is not None:
            self._place = replace(place, generation=place.generation - 1)  # `_once` counts it up again
        self.start(fields)

    def is_told_otherwise(self, fields: RouterSpec) -> bool:
        """Whether the router runs by other settings than `fields`."""
        return self._fields != fields

    async def use(self, fields: RouterSpec, grace_s: float) -> None:
        """Have the router run by `fields`: it finishes what runs within `grace_s` and starts again on its port."""
        self._fields = fields
        if self._host is None:
            return
        self._is_wanted_down = True
        try:
            async with asyncio.timeout(grace_s + STOP_MARGIN_S):
                await self._host.end.remote(grace_s)
        except (TimeoutError, *ray_actors.ACTOR_ERRORS) as exc:
            self._log.note(ray_actors.ROUTER, f"did not end: {first_line(exc)}", is_failure=True)

    async def stop(self, grace_s: float) -> None:
        """End the router within `grace_s`, else kill it."""
        self.stopping = True
        if self._host is None:
            return
        if problem := await stop_host(self._host, grace_s):
            self._log.note(ray_actors.ROUTER, problem, is_failure=True)

    async def _keep(self) -> None:
        while not self.stopping:
            self._began_s = time.monotonic()
            try:
                await self._once()
            except Exception as exc:  # task boundary: the failure of the host must reach whoever waits for it
                self._take_end(Ended(None, f"{type(exc).__name__}: {first_line(exc)}"))
            if self.stopping:
                return
            if time.monotonic() - self._began_s > STEADY_S:
                self._delay_s = FIRST_DELAY_S
            if not self._is_wanted_down:
                await asyncio.sleep(self._delay_s)
                self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
            self._is_wanted_down = False

    async def _once(self) -> None:
        """Run one process of the router from its start to its end."""
        fields, place = self._fields, self._place
        assert fields is not None
        generation = place.generation + 1
        if self._host is None:
            name = ray_actors.ROUTER if generation == 1 else f"{ray_actors.ROUTER}.{time.monotonic_ns()}"
            self._place = place = replace(place, host_name=name)
            self._host = ray_actors.create_on_node(
                RouterHost, name=name, node_id=self._order.node_id, env_vars=self._order.env_vars
            )
        self._place = replace(place, generation=generation)
        self._change(state="starting", pid=None)
        if place.port:
            fields = replace(fields, port=place.port)
        async for event in ray_actors.events_of(self._host, fields, self.status.log_path, generation):
            self._take_event(event)

    def _take_event(self, event: HostEvent) -> None:
        match event:
            case Spawned(pid):
                self._change(pid=pid)
            case RouterReady(address):
                self._place = replace(self._place, port=int(address.rpartition(":")[2]))
                self._change(state="ready", address=address, reason="", last_log_lines=())
                self._log.note(ray_actors.ROUTER, f"listens on {address}")
                if not self.ready.done():
                    self.ready.set_result(None)
            case Ended():
                self._take_end(event)
            case _:
                return

    def _take_end(self, end: Ended) -> None:
        if end.code is None:
            self._host = None
        self._change(state="ended", reason=end.reason, last_log_lines=end.last_log_lines)
        is_failure = not (self.stopping or self._is_wanted_down)
        again = "; it is started again on its port" if not self.stopping and self._place.port else ""
        self._log.note(ray_actors.ROUTER, f"ended: {end.reason}{again}", is_failure=is_failure)
        if not self.ready.done():
            log = "\n".join(("", f"end of {self.status.log_path}:", *end.last_log_lines))
            self.ready.set_exception(StartFailed(f"router: {end.reason}{log if end.last_log_lines else ''}"))
            self.ready.exception()  # retrieved: another's failure may have ended the start before

    def _change(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]
        self._changed()
