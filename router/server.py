"""A router process from its socket to its last request.

Owns the HTTP server, the order of start and stop, and the process's garbage collector. Must not know requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final, cast

import uvicorn
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from cluster.pool import WorkerPool
from core.cluster_token import operator_key
from core.errors import ConfigError, Unauthorized, WorkerDraining
from core.policy.breaker import Breakers
from core.policy.pair_trust import PairTrust
from core.router_spec import RouterSpec
from core.types import ControlDecision, WorkerRecord
from router.adapting import AdaptingPolicy
from router.app import RelayedRoutes
from router.console.feed import ConsoleFeed, Sources
from router.control import control_app
from router.dispatcher import LAST_WORDS_S, Dispatcher
from router.event_log import EventLog
from router.health import Readiness
from router.http_protocol import HttpProtocol, WaitingRoom
from router.knowledge import Knowledge
from router.observer import Observer
from router.pair_tests import PairTests
from router.placing import Placer
from router.recorder import TrafficRecorder
from router.tenants import OPERATOR, Tenants
from router.tls import server_context

BACKLOG: Final = 2048
START_S: Final = 10.0
# Young objects of a request die by reference count; collections only walk the survivors and stall every stream.
GC_GEN0_THRESHOLD: Final = 100_000

log = logging.getLogger(__name__)


class RouterServer:
    """One HTTP server with its pool of workers; start once, stop once."""

    def __init__(
        self,
        spec: RouterSpec,
        pool: WorkerPool,
        decisions: Callable[[], tuple[ControlDecision, ...]] = tuple,
    ) -> None:
        """Build everything that needs no network; `decisions` tells what was decided about the pools, newest first.

        Raises ConfigError for a policy that does not exist, or an event log that cannot be written.
        """
        self._spec = spec
        self._pool = pool
        self._readiness = Readiness(pool.view, one_pool=spec.one_pool)
        self._tenants = Tenants(
            spec.tenants_file,
            slo_classes=[c.name for c in spec.slo_classes],
            operator_key=operator_key(spec.token),
        )
        self._event_log = _event_log(spec)
        self._policy = AdaptingPolicy(spec.policy, spec.policy_context, self._event_log)
        pool.watch = self._policy
        self._recorder = self._make_recorder()
        breakers = Breakers()
        self._observer = Observer.from_spec(
            spec,
            policy=self._policy,
            view=lambda: placer.view(),
            announced=self._announced,
            num_inflight=lambda: self.dispatcher.num_inflight,
            open_breakers=lambda: breakers.left_out(time.monotonic()),
            recorder=self._recorder,
        )
        knowledge = Knowledge(spec, self._observer.calibration, self._tenants.weights, self._policy.answered)
        pairs = PairTrust(self_test=spec.self_test)
        self._pair_tests = PairTests(pool, pairs, lease_s=spec.lease_s)
        placer = Placer(
            pool=pool,
            policy=self._policy,
            spec=spec,
            breakers=breakers,
            knowledge=knowledge,
            pairs=pairs,
            event_log=self._event_log,
        )
        self.dispatcher = Dispatcher(
            pool=pool,
            spec=spec,
            tenants=self._tenants,
            placer=placer,
            knowledge=knowledge,
            observer=self._observer,
            breakers=breakers,
        )
        self._console = ConsoleFeed(spec, self._console_sources(placer, breakers, decisions))
        relayed = RelayedRoutes(self.dispatcher, self._announced)
        self._http = _http_server(spec, self._control(placer, breakers, pairs), relayed)
        self._serving: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []  # what runs beside requests, until `stop`

    def _control(self, placer: Placer, breakers: Breakers, pairs: PairTrust) -> FastAPI:
        """Make what serves everything but the relayed routes."""
        return control_app(
            readiness=self._readiness,
            metrics=self._observer.metrics,
            view=placer.view,
            breakers=breakers,
            explainer=self._observer.explainer,
            traffic=self._observer.traffic,
            context=lambda: self._policy.context,
            calibration=self._observer.calibration,
            tenant_of=self._tenant_of,
            num_inflight=lambda: self.dispatcher.num_inflight,
            console=self._console,
            pairs=lambda: pairs.report(time.monotonic()),
        )

    def _make_recorder(self) -> TrafficRecorder | None:
        spec = self._spec
        if not spec.record:
            return None
        return TrafficRecorder(
            Path(spec.run_dir) / spec.record,
            spec.record_bytes,
            policy=spec.policy,
            context=lambda: self._policy.context,
            view=self._pool.view,
        )

    def _console_sources(
        self, placer: Placer, breakers: Breakers, decisions: Callable[[], tuple[ControlDecision, ...]]
    ) -> Sources:
        return Sources(
            view=placer.view,
            announced=self._announced,
            num_inflight=lambda: self.dispatcher.num_inflight,
            readiness=self._readiness,
            breakers=breakers,
            explainer=self._observer.explainer,
            calibration=self._observer.calibration,
            history=self._observer.history,
            decisions=decisions,
        )

    async def start(self) -> str:
        """Bind, connect to the cluster and serve; return the bound address as host:port.

        Raises ConfigError when the port cannot be bound.
        """
        listener = bind(self._spec.host, self._spec.port)
        host, port = listener.getsockname()[:2]
        self._console.open()
        try:
            await self._pool.start()
        except BaseException:
            listener.close()
            raise
        self._background = [
            asyncio.create_task(self._policy.keep_adapting(), name="adapt"),
            asyncio.create_task(self._pair_tests.keep_testing(), name="pair-tests"),
        ]
        if self._event_log is not None:
            self._background.append(asyncio.create_task(self._event_log.keep_writing(), name="event-log"))
        if self._recorder is not None:
            self._background.append(asyncio.create_task(self._recorder.keep_writing(), name="recorder"))
        self._serving = asyncio.create_task(self._http.serve(sockets=[listener]), name="http")
        async with asyncio.timeout(START_S):
            await self._http.accepting.wait()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """Take no new connections, let requests finish for drain_s, end the rest with an error, then disconnect."""
        self._readiness.stopping = True
        self._console.close()
        self._http.should_exit = True
        try:
            async with asyncio.timeout(self._spec.drain_s):
                await self.dispatcher.wait_idle()
        except TimeoutError:
            log.warning("%d requests outlived the drain time", self.dispatcher.num_inflight)
            self.dispatcher.break_off_all(WorkerDraining("the router is shutting down"))
        if self._serving is not None:
            await self._serving
        self.dispatcher.close()
        self._observer.close()
        await self._pool.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._event_log is not None:
            await self._event_log.close()
        if self._recorder is not None:
            await self._recorder.close()

    def reload(self) -> None:
        """Read the tenants file again."""
        self._tenants.reload()

    def _tenant_of(self, request: Request) -> str | None:
        """Name the tenant of a control request; None: the operator, who sees all.

        Raises HTTPException where its key is missing or unknown.
        """
        headers = request.headers
        try:
            tenant = self._tenants.authenticate(headers.get("authorization"), headers.get("x-api-key"))
        except Unauthorized as exc:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, str(exc)) from exc
        return None if tenant is OPERATOR else tenant.name

    async def failed(self) -> None:
        """Wait until the HTTP server ends without being asked to."""
        assert self._serving is not None
        await asyncio.wait([self._serving])

    def _announced(self) -> tuple[WorkerRecord, ...]:
        membership = self._pool.membership
        return () if membership is None else membership.workers


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal once more."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


def _http_server(spec: RouterSpec, control: FastAPI, relayed: RelayedRoutes) -> _HttpServer:
    """Make the server. Raises ConfigError for certificates that cannot be used."""
    tls = server_context(spec.tls_cert, spec.tls_key)
    return _HttpServer(
        uvicorn.Config(
            control,
            http=cast(type[asyncio.Protocol], partial(HttpProtocol, relayed, WaitingRoom())),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(spec.drain_s + LAST_WORDS_S) + 1,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
    )


def _event_log(spec: RouterSpec) -> EventLog | None:
    if not spec.event_log:
        return None
    return EventLog(Path(spec.run_dir) / spec.event_log, policy=spec.policy, context=spec.policy_context)


def bind(host: str, port: int) -> socket.socket:
    """Bind the listening socket.

    Raises ConfigError that names the key and what to do.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise ConfigError(f"router.host: {host!r} is not an address of this machine: {exc.strerror}") from exc
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise _bind_error(host, port, exc) from exc
    listener.setblocking(False)
    return listener


def _bind_error(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"router.port: {port} on {host} is taken by another program; stop that program, or set router.port to"
            " another port (0 takes any free one)"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"router.port: {port} needs privileges; choose a port above 1023")
    return ConfigError(f"router.host: cannot listen on {host}:{port}: {error.strerror}")


def settle_garbage_collector() -> None:
    """Keep what start-up made out of every later collection, and make collections rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_GEN0_THRESHOLD, 50, 100)
