"""The controller: one Ray actor that places the workers, brings them up, and announces those that live.

Owns the order of start and stop, the membership and its versions, and the list of events. Must not carry requests or
tokens. A worker that ends leaves the membership at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from dataclasses import astuple, replace
from pathlib import Path

from cluster import ray_actors
from cluster.cluster_status import ClusterEvent, ClusterStatus, MemberStatus, StartOrder
from cluster.host import RouterHost, WorkerHost
from cluster.host_events import Ended, HostEvent, HostFacts, RouterReady, Spawned, StageDone, WorkerReady
from cluster.membership import MembershipServer
from cluster.placement import WorkerPlacement, assign_cores
from cluster.ray_actors import Handle
from core.config.specs import component_tls, engine_spec, kv_spec, served_model_name
from core.errors import StartFailed
from core.router_spec import RouterSpec
from core.types import Fingerprint, Membership, WorkerRecord
from core.worker_spec import EngineSpec, WorkerSpec

EVENTS_KEPT = 200
STOP_MARGIN_S = 5.0  # beyond its grace, for a host to answer
FIRST_EPOCH = 1


class Controller:
    """Brings one cluster up, watches it, takes it down."""

    def __init__(self, order: StartOrder) -> None:
        self._order = order
        self._begin_s = time.monotonic()
        self._tls = component_tls(order.config, Path(order.base))
        self._server = MembershipServer(host=order.address, token=order.token, tls=self._tls)
        self._membership = Membership(version=0)
        self._membership_address = ""
        self._status = dict(_first_status(order))  # all members, in order
        self._hosts: dict[str, Handle] = {}  # of all and only the members whose actor was created
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, asyncio.Future[None]] = {}
        self._events: deque[ClusterEvent] = deque(maxlen=EVENTS_KEPT)
        self._num_events = 0
        self._news = asyncio.Event()  # replaced at each event: whoever holds it learns of the next one
        self._starting: asyncio.Task[object] | None = None
        self._stopping = False

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and lists."""
        return ray_actors.CONTROLLER

    async def start(self, timeout_s: float) -> str:
        """Bring everything up; return the router's host:port once every worker and the router are ready.

        Raises StartFailed when one fails or `timeout_s` runs out; what was started then stays for `stop`.
        """
        self._starting = asyncio.current_task()
        try:
            async with asyncio.timeout(timeout_s):
                await self._serve_membership()
                facts = await self._place(timeout_s)
                self._start_router()
                self._start_workers(facts)
                await self._all_ready()
        except TimeoutError:
            raise StartFailed(await self._why_late(timeout_s)) from None
        return self._status[ray_actors.ROUTER].address

    async def events_after(self, number: int, wait_s: float) -> tuple[ClusterEvent, ...]:
        """Return the events after `number`; when there are none, wait for one, but no longer than `wait_s`."""
        news = self._news
        if self._num_events <= number:
            try:
                async with asyncio.timeout(wait_s):
                    await news.wait()
            except TimeoutError:
                return ()
        return tuple(event for event in self._events if event.number > number)

    async def status(self) -> ClusterStatus:
        """Report the cluster as it is."""
        return ClusterStatus(
            model=served_model_name(self._order.config),
            membership_version=self._membership.version,
            membership_address=self._membership_address,
            members=tuple(self._status.values()),
            events=tuple(self._events)[-20:],
        )

    async def stop(self, grace_s: float) -> None:
        """End the router, then the workers, each within `grace_s`; what does not end in time is killed. Idempotent."""
        self._stopping = True
        if self._starting is not None:
            self._starting.cancel()  # no effect on a start that is done
        await self._stop_hosts([ray_actors.ROUTER], grace_s)
        await self._stop_hosts([p.worker_id for p in self._order.placements], grace_s)
        await self._server.stop()

    async def _serve_membership(self) -> None:
        port = await self._server.start()
        self._membership_address = f"{self._order.address}:{port}"
        self._publish(())

    async def _place(self, timeout_s: float) -> dict[str, HostFacts]:
        """Reserve each worker's resources and put its actor there; return the facts of its place by worker id."""
        for placement in self._order.placements:
            group = await ray_actors.reserve(placement, timeout_s)
            host = ray_actors.create_in_group(
                WorkerHost, placement.worker_id, placement=placement, group=group, env_vars=self._order.env_vars
            )
            self._hosts[placement.worker_id] = host
        facts = {name: await host.facts.remote() for name, host in self._hosts.items()}
        for name, found in facts.items():
            node = f"{found.host_name} ({self._status[name].node})"
            self._change(name, state="starting", node=node, gpus=found.gpus)
        self._note("placement", ", ".join(f"{name} on {s.node}" for name, s in self._status.items() if s.role))
        slow = sorted({found.host_name for found in facts.values() if found.niceness > 0})
        if slow:
            remedy = "start it with RAY_worker_niceness=0 for full speed"
            self._note("placement", f"Ray gives its processes on {', '.join(slow)} a low priority; {remedy}")
        return facts

    def _start_router(self) -> None:
        order = self._order
        fields = RouterSpec.from_config(
            order.config,
            membership_address=self._membership_address,
            run_dir=order.run_dir,
            base=Path(order.base),
            token=order.token,
            tls=self._tls,
        )
        self._hosts[ray_actors.ROUTER] = ray_actors.create_on_node(
            RouterHost, name=ray_actors.ROUTER, node_id=order.node_id, env_vars=order.env_vars
        )
        self._follow(ray_actors.ROUTER, fields)

    def _start_workers(self, facts: dict[str, HostFacts]) -> None:
        cores_of_node = {p.node_id: facts[p.worker_id].cores for p in self._order.placements}
        pinned = assign_cores(self._order.placements, cores_of_node)
        for placement in self._order.placements:
            cores = pinned.get(placement.worker_id, ())
            self._change(placement.worker_id, epoch=FIRST_EPOCH, cores=cores)
            self._follow(placement.worker_id, worker_spec(self._order, placement, FIRST_EPOCH, cores))

    def _follow(self, name: str, spec: RouterSpec | WorkerSpec) -> None:
        self._ready[name] = asyncio.get_running_loop().create_future()
        self._followers[name] = asyncio.create_task(self._take_events(name, spec), name=f"follow {name}")

    async def _take_events(self, name: str, spec: RouterSpec | WorkerSpec) -> None:
        try:
            async for event in ray_actors.events_of(self._hosts[name], spec, self._status[name].log_path):
                self._take_event(name, event)
        except Exception as exc:  # task boundary: the failure of one host must reach whoever waits for it
            self._take_event(name, Ended(None, f"{type(exc).__name__}: {exc}"))

    def _take_event(self, name: str, event: HostEvent) -> None:
        match event:
            case Spawned(pid):
                self._change(name, pid=pid)
            case StageDone(stage, elapsed_s):
                self._change(name, stage=stage)
                self._note(name, f"{stage} done, {elapsed_s:.1f} s after its start")
            case RouterReady(address):
                self._change(name, state="ready", address=address)
                self._become_ready(name, f"listens on {address}")
            case WorkerReady(record, hello):
                self._change(
                    name,
                    state="ready",
                    address=record.address,
                    kv_address=hello.kv_address,
                    fingerprint=short_digest(hello.fingerprint),
                    identity=hello.fingerprint,
                )
                self._publish((*self._membership.workers, replace(record, node=self._status[name].node)))
                self._become_ready(name, f"ready at {record.address}")
            case Ended():
                self._take_end(name, event)

    def _become_ready(self, name: str, what: str) -> None:
        self._note(name, what)
        if not self._ready[name].done():
            self._ready[name].set_result(None)

    def _take_end(self, name: str, end: Ended) -> None:
        self._change(name, state="ended", reason=end.reason)
        left = tuple(worker for worker in self._membership.workers if worker.worker_id != name)
        if left != self._membership.workers:
            self._publish(left)
        self._note(name, f"ended: {end.reason}", is_failure=not self._stopping)
        if not self._ready[name].done():
            log = "\n".join(("", f"end of {self._status[name].log_path}:", *end.last_log_lines))
            self._ready[name].set_exception(StartFailed(f"{name}: {end.reason}{log if end.last_log_lines else ''}"))
            self._ready[name].exception()  # retrieved: another's failure may have ended the start before

    async def _all_ready(self) -> None:
        """Wait for every member; the first that fails fails the start."""
        done, _ = await asyncio.wait(self._ready.values(), return_when=asyncio.FIRST_EXCEPTION)
        for future in done:
            future.result()

    async def _why_late(self, timeout_s: float) -> str:
        """Name the members that are not ready, how far they came and the end of their logs."""
        lines = [f"not ready after {timeout_s:g} s (ray.start_timeout_s):"]
        for name, status in self._status.items():
            if status.state == "ready":
                continue
            lines.append(f"  {name} is {status.state}" + (f", last stage done: {status.stage}" if status.stage else ""))
            if status.role is not None and name in self._hosts and status.state == "starting":
                lines += [f"    {line}" for line in await self._hosts[name].last_log_lines.remote()]
        return "\n".join(lines)

    async def _stop_hosts(self, names: list[str], grace_s: float) -> None:
        stopping = [self._stop_host(name, grace_s) for name in names if name in self._hosts]
        await asyncio.gather(*stopping)

    async def _stop_host(self, name: str, grace_s: float) -> None:
        try:
            async with asyncio.timeout(grace_s + STOP_MARGIN_S):
                await self._hosts[name].stop.remote(grace_s)
        except TimeoutError:
            self._note(name, f"its host did not answer within {grace_s + STOP_MARGIN_S:g} s", is_failure=True)
        except ray_actors.ACTOR_ERRORS as exc:
            self._note(name, f"its host is gone: {str(exc).splitlines()[0]}", is_failure=True)

    def _publish(self, workers: tuple[WorkerRecord, ...]) -> None:
        self._membership = Membership(self._membership.version + 1, workers)
        self._server.publish(self._membership)

    def _change(self, name: str, **changes: object) -> None:
        self._status[name] = replace(self._status[name], **changes)  # type: ignore[arg-type]

    def _note(self, subject: str, what: str, *, is_failure: bool = False) -> None:
        self._num_events += 1
        elapsed_s = time.monotonic() - self._begin_s
        self._events.append(ClusterEvent(self._num_events, elapsed_s, subject, what, is_failure))
        news, self._news = self._news, asyncio.Event()
        news.set()


def worker_spec(order: StartOrder, placement: WorkerPlacement, epoch: int, cores: tuple[int, ...]) -> WorkerSpec:
    """Write down what the process of one worker is told."""
    return WorkerSpec(
        worker_id=placement.worker_id,
        role=placement.role,
        epoch=epoch,
        host=placement.address,
        run_dir=order.run_dir,
        engine=_engine_spec(order, placement),
        kv=kv_spec(order.config),
        token=order.token,
        tls=component_tls(order.config, Path(order.base)),
        cpus=cores,
    )


def short_digest(fingerprint: Fingerprint) -> str:
    """Shorten a fingerprint for people: workers of equal digests can be paired."""
    return hashlib.sha256(repr(astuple(fingerprint)).encode()).hexdigest()[:8]


def _engine_spec(order: StartOrder, placement: WorkerPlacement) -> EngineSpec:
    spec = engine_spec(order.config, placement.role, has_gpu=placement.gpus > 0, base=Path(order.base))
    if order.engine_kind == spec.kind:
        return spec
    return replace(spec, kind=order.engine_kind, extra_args=order.engine_args)


def _first_status(order: StartOrder) -> list[tuple[str, MemberStatus]]:
    logs = Path(order.run_dir)
    workers = [
        MemberStatus(p.worker_id, p.role, p.address, "placing", log_path=str(logs / f"{p.worker_id}.log"))
        for p in order.placements
    ]
    router = MemberStatus(
        ray_actors.ROUTER, None, order.address, "starting", log_path=str(logs / f"{ray_actors.ROUTER}.log")
    )
    return [(status.name, status) for status in (*workers, router)]
