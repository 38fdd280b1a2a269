"""The workers a router can use: one session per announced worker, kept up, and the view that policies read.

Owns sessions and the cache of the view. Must not choose a worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from cluster.membership import MembershipSource
from cluster.session_client import WorkerSession
from core.component_tls import ClientTLS
from core.errors import BatonError
from core.types import ClusterView, Membership, WorkerHello, WorkerRecord, WorkerSpeed, WorkerState, WorkerView

_LOG = logging.getLogger(__name__)

_CONNECT_S: Final = 5.0
_FIRST_BACK_OFF_S: Final = 0.1
_MAX_BACK_OFF_S: Final = 2.0
_STEADY_S: Final = 10.0  # a session that lived this long starts the back-off anew
_AS_PREDICTED: Final = WorkerSpeed()
_RETIRE_S: Final = 86_400.0  # for calls on a worker no longer announced: the most that router.request_timeout_s may be


class StepWatch(Protocol):
    """Follows the steps of every worker."""

    def stepped(self, record: WorkerRecord, hello: WorkerHello, state: WorkerState) -> WorkerSpeed:
        """Take a new state of a worker; return how its steps compare with what is predicted of them."""
        ...


class WorkerPool:
    """Follows a membership and keeps a session to each member; `start` it, `close` it."""

    def __init__(self, source: MembershipSource, *, token: str, tls: ClientTLS | None = None) -> None:
        """Prepare; `tls` is for the connections to workers, None for plain ones."""
        self._source = source
        self._token = token
        self._tls = tls
        self._membership: Membership | None = None
        self._members: dict[str, _Member] = {}  # all and only the workers announced, by id, in order of id
        self._tasks: set[asyncio.Task[None]] = set()  # all and only the tasks not done: members, retired ones, follower
        self._view: ClusterView | None = None  # None: something changed since it was made
        self._views: dict[str, WorkerView | None] = {}  # of each member, as of the latest `view`, in order of id
        self._stale: set[_Member] = set()  # all and only the members whose view may differ from that
        self._change: asyncio.Future[None] | None = None  # shared by all who wait for a change
        self.num_joined = 0  # sessions that were made, ever
        self.on_change: Callable[[], None] | None = None  # called whenever the view may have changed
        self.watch: StepWatch | None = None

    @property
    def membership(self) -> Membership | None:
        """The membership in force; None until the source told the first."""
        return self._membership

    async def start(self) -> None:
        """Begin to follow the source; returns before any worker is connected (see `wait_changed`)."""
        self._spawn(self._follow(), "membership")

    async def close(self) -> None:
        """End every session; calls in flight fail with WorkerLost; idempotent."""
        self._members.clear()
        self._forget_views()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._changed()

    def view(self) -> ClusterView:
        """Return the workers that are connected and take work; the same object until something changes."""
        if self._view is None:
            for member in self._stale:
                self._views[member.record.worker_id] = member.view()
            self._stale.clear()
            self._view = ClusterView(tuple(filter(None, self._views.values())))
        return self._view

    @property
    def is_worker_missing(self) -> bool:
        """Whether a worker that is announced is not connected: it may come."""
        return any(member.session is None or not member.session.alive for member in self._members.values())

    def session(self, worker_id: str) -> WorkerSession | None:
        """Return the live session to a worker; None when it is not announced or not connected."""
        member = self._members.get(worker_id)
        if member is None or member.session is None or not member.session.alive:
            return None
        return member.session

    async def wait_changed(self, timeout_s: float) -> bool:
        """Wait until the view may differ from what it is at the call; return False if `timeout_s` passed first."""
        if self._change is None or self._change.done():
            self._change = asyncio.get_running_loop().create_future()
        change = self._change
        await asyncio.wait([change], timeout=timeout_s)
        return change.done()

    async def _follow(self) -> None:
        async for membership in self._source.watch():
            self._adopt(membership)

    def _adopt(self, membership: Membership) -> None:
        announced = {record.worker_id: record for record in membership.workers}
        before, self._members = self._members, {}
        for worker_id in sorted(announced):
            member = before.pop(worker_id, None)
            if member is not None and member.record != announced[worker_id]:
                member.retire()
                member = None
            self._members[worker_id] = member or self._join(announced[worker_id])
        for member in before.values():
            member.retire()
        self._membership = membership
        self._forget_views()
        _LOG.info("membership %d: %s", membership.version, ", ".join(self._members) or "no workers")
        self._changed()

    def _join(self, record: WorkerRecord) -> _Member:
        member = _Member(
            record,
            token=self._token,
            tls=self._tls,
            on_change=self._member_changed,
            on_join=self._joined,
            speed_of=self._speed_of,
        )
        member.task = self._spawn(member.keep(), f"worker-{record.worker_id}")
        return member

    def _spawn(self, body: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(body, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("%s is followed no longer", task.get_name(), exc_info=task.exception())

    def _forget_views(self) -> None:
        self._views = dict.fromkeys(self._members)
        self._stale = set(self._members.values())

    def _joined(self) -> None:
        self.num_joined += 1

    def _member_changed(self, member: _Member) -> None:
        self._stale.add(member)
        self._changed()

    def _changed(self) -> None:
        self._view = None
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
        if self.on_change is not None:
            self.on_change()

    def _speed_of(self, session: WorkerSession) -> WorkerSpeed:
        if self.watch is None:
            return _AS_PREDICTED
        return self.watch.stepped(session.record, session.hello, session.state)


class _Member:
    """One announced worker and the session to it."""

    task: asyncio.Task[None]

    def __init__(
        self,
        record: WorkerRecord,
        *,
        token: str,
        tls: ClientTLS | None,
        on_change: Callable[[_Member], None],
        on_join: Callable[[], None],
        speed_of: Callable[[WorkerSession], WorkerSpeed],
    ) -> None:
        self.record = record
        self.session: WorkerSession | None = None
        self._token = token
        self._tls = tls
        self._on_change = on_change
        self._on_join = on_join
        self._speed_of = speed_of
        self._state: WorkerState | None = None  # the latest that `_speed` knows of
        self._speed = _AS_PREDICTED
        self._retired = False
        self._over = asyncio.Event()  # the session is lost, or retired and idle

    def view(self) -> WorkerView | None:
        """Make the worker as policies see it; None if it takes no work."""
        session = self.session
        if session is None or not session.alive or session.state.draining:
            return None
        work = session.inflight
        return WorkerView(
            record=self.record,
            hello=session.hello,
            state=session.state,
            inflight_requests=session.inflight_requests,
            inflight_prompt_tokens=work.prompt_tokens,
            inflight_prompts=work.prompts,
            inflight_prompt_pairs=work.prompt_pairs,
            inflight_context_tokens=work.context_tokens,
            prompting_since_s=work.prompting_since_s,
            tightest_tpot_s=work.tightest_tpot_s,
            speed=self._speed,
        )

    def retire(self) -> None:
        """End the session once its calls have ended; the member has left the pool's view."""
        self._retired = True
        if self.session is None or not self.session.inflight_requests:
            self.task.cancel()
        else:
            asyncio.get_running_loop().call_later(_RETIRE_S, self.task.cancel)

    async def keep(self) -> None:
        """Keep a session to the worker until the task is cancelled or the member has retired."""
        loop = asyncio.get_running_loop()
        back_off_s = _FIRST_BACK_OFF_S
        while not self._retired:
            began_s = loop.time()
            reason = await self._keep_once()
            if self._retired:
                break
            if loop.time() - began_s > _STEADY_S:
                back_off_s = _FIRST_BACK_OFF_S
            _LOG.warning("%s; next try in %.1f s", reason, back_off_s)
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)

    async def _keep_once(self) -> str:
        """Hold one session from connecting to its end; return why it ended."""
        session = WorkerSession(self.record, token=self._token, tls=self._tls, on_change=self._changed)
        try:
            await session.connect(_CONNECT_S)
            self.session = session
            self._on_join()
            self._changed()
            _LOG.info("worker %s connected at %s", self.record.worker_id, self.record.address)
            await self._over.wait()
            return f"{self.record.worker_id}: {session.lost_reason or 'retired'}"
        except BatonError as exc:
            return str(exc)
        finally:
            self.session = None
            self._over.clear()
            await session.close()

    def _changed(self) -> None:
        session = self.session
        if session is not None and (not session.alive or (self._retired and not session.inflight_requests)):
            self._over.set()
        if self._retired:
            return
        if session is not None and session.alive and session.state is not self._state:
            self._state = session.state
            self._speed = self._speed_of(session)
        self._on_change(self)
