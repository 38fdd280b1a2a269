"""One router's session with a worker: its calls, and the frames that carry their replies.

Owns the tasks of the calls and the gathering of everything made in one engine step into one frame. Must not know how
sessions are accepted (cluster.session_server) nor what a leg does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import grpc.aio

from cluster import channel, codec
from cluster.outbox import Outbox
from cluster.pb import worker_pb2 as pb
from core.errors import BatonError, EngineFailed, WorkerDraining
from core.types import LegFacts
from core.worker import Worker

_LOG = logging.getLogger(__name__)

_STALL_S: Final = 1.0  # a write that takes longer means that the router does not read
_LAST_WRITE_S: Final = 60.0  # for a router that reads again, or whose connection breaks, to learn that it is over
_FAR_BEHIND: Final = 4  # times the limit on unsent bytes, at which the length of the write does not matter
_STATE_INTERVAL_S: Final = 0.05  # least time between frames that carry nothing but a changed state
_TICKS_PER_HEARTBEAT: Final = 2
_MAX_GATHER_PASSES: Final = 8  # passes of the loop that one frame waits for stragglers of its step


class ServedSession:
    """Runs one session until its router leaves, misbehaves or stops reading."""

    def __init__(
        self,
        worker: Worker,
        context: grpc.aio.ServicerContext,
        *,
        max_unsent_bytes: int,
        accepts_calls: Callable[[], bool],
    ) -> None:
        self._worker = worker
        self._context = context
        self._max_unsent_bytes = max_unsent_bytes
        self._accepts_calls = accepts_calls
        self._loop = asyncio.get_running_loop()
        self._group = asyncio.TaskGroup()
        self._calls: dict[int, _Call] = {}  # all and only the calls whose task is not done
        self._outbox = Outbox()
        self._over: asyncio.Future[None] = self._loop.create_future()  # done when this side ends the session
        self._over_reason = ""
        self._ending = False
        self._wake_due = False
        self._waiter: asyncio.Future[None] | None = None  # the writer, while it has nothing to do
        self._write_began_s: float | None = None
        self._flushed: asyncio.Future[None] | None = None
        self._state_dirty = False
        self._state_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._silent_ticks = 0
        self.frames_sent = 0
        self.closed = asyncio.Event()  # set by the owner once `run` has returned or raised

    async def run(self) -> str:
        """Serve until the router closes the stream; return why this side ended it, empty if it did not.

        Leaves no task behind: every call still running is cancelled and awaited.
        """
        try:
            async with self._group:
                reader = self._group.create_task(self._read_commands(), name="session-reader")
                writer = self._group.create_task(self._write_frames(), name="session-writer")
                self._tick_timer = self._loop.call_later(channel.HEARTBEAT_S / _TICKS_PER_HEARTBEAT, self._tick)
                await asyncio.wait({reader, writer, self._over}, return_when=asyncio.FIRST_COMPLETED)
                self._ending = True
                for task in (reader, *self.call_tasks()):
                    task.cancel()
                self._outbox.take()
                self._wake()
                # gRPC cannot send a status past a write that is under way, and a cancelled write still is.
                await asyncio.wait({writer}, timeout=_LAST_WRITE_S)
                writer.cancel()
        finally:
            self._ending = True
            self._tell_flushed()
            for timer in (self._tick_timer, self._state_timer):
                if timer is not None:
                    timer.cancel()
        return self._over_reason

    def call_tasks(self) -> list[asyncio.Task[None]]:
        """List the tasks of the calls that run."""
        return [call.task for call in self._calls.values()]

    def end(self, reason: str) -> None:
        """Make `run` return `reason` after cancelling what runs; the first reason counts."""
        if not self._over.done():
            self._over_reason = reason
            self._over.set_result(None)

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything produced is written, or `timeout_s` has passed."""
        if not self._ending and (self._outbox or self._write_began_s is not None):
            self._flushed = self._loop.create_future()
            await asyncio.wait([self._flushed], timeout=timeout_s)

    def state_changed(self) -> None:
        """Note that the worker's state moved: the next frame carries it, soon even when nothing else is sent."""
        self._state_dirty = True
        if self._state_timer is None:
            self._state_timer = self._loop.call_later(_STATE_INTERVAL_S, self._send_dirty_state)

    def start_reply(self, call_id: int, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        """Take the start of a reply."""
        self._outbox.start(call_id, status, headers)
        self._wake()

    def add_body(self, call_id: int, data: bytes) -> None:
        """Take the next bytes of a reply; give the session up when its router does not read fast enough."""
        outbox = self._outbox
        if outbox.unsent_bytes > self._max_unsent_bytes and self._is_stalled(outbox.unsent_bytes):
            self.end(f"{outbox.unsent_bytes} bytes are unsent and the router does not read")
            return
        outbox.body(call_id, data)
        self._wake()

    async def _read_commands(self) -> None:
        try:
            while (command := await self._context.read()) is not grpc.aio.EOF:
                self._obey(command)
        except grpc.aio.BaseError as exc:
            _LOG.debug("session reader ends: %r", exc)

    def _obey(self, command: pb.Command) -> None:
        match command.WhichOneof("kind"):
            case "submit":
                self._submit(command.submit)
            case "abort":
                self._abort(command.abort.call_id)
            case "cancel_transfer":
                cancel = command.cancel_transfer
                name = f"cancel-{cancel.transfer_id}"
                self._group.create_task(self._cancel_transfer(cancel.transfer_id, cancel.reason), name=name)
            case "drain":
                self._worker.drain()
            case _:
                _LOG.warning("command of an unknown kind from %s ignored", self._context.peer())

    def _submit(self, submit: pb.Submit) -> None:
        call_id = submit.call_id
        if call_id in self._calls:
            self.end(f"call id {call_id} is in use")
            return
        try:
            if not self._accepts_calls():
                raise WorkerDraining("the worker is stopping")
            submission = codec.submission_from_pb(submit)
        except BatonError as exc:
            self._end_reply(call_id, exc.name, str(exc))
            return
        call = _Call(self, call_id)
        call.task = self._group.create_task(self._run(submission, call), name=submission.call.request_id)
        # A callback and not a finally: a task cancelled before its first step never enters its body.
        call.task.add_done_callback(partial(self._forget, call))
        self._calls[call_id] = call

    async def _run(self, submission: codec.Submission, call: _Call) -> None:
        error, message = "", ""
        try:
            await self._worker.run(submission.leg, submission.call, submission.handover, submission.order, call)
            if not call.started:
                raise EngineFailed("the engine ended the call without a reply")
        except BatonError as exc:
            error, message = exc.name, str(exc)
        except asyncio.CancelledError:
            if call.live and not self._ending:
                self._end_reply(call.call_id, EngineFailed.name, "the engine cancelled the call")
            raise
        except Exception as exc:  # the boundary of the call's task: the session outlives it
            _LOG.exception("call %s failed", submission.call.request_id)
            error, message = EngineFailed.name, f"{type(exc).__name__}: {exc}"
        if call.live:
            self._end_reply(call.call_id, error, message)

    def _forget(self, call: _Call, task: asyncio.Task[None]) -> None:
        self._calls.pop(call.call_id, None)

    def _abort(self, call_id: int) -> None:
        call = self._calls.get(call_id)
        if call is not None and call.live:
            call.live = False
            call.task.cancel()
        self._outbox.drop(call_id)

    async def _cancel_transfer(self, transfer_id: str, reason: str) -> None:
        try:
            await self._worker.cancel_transfer(transfer_id, reason)
        except (BatonError, TimeoutError) as exc:  # the engine does not listen
            _LOG.warning("transfer %s is left to its lease: %s", transfer_id, exc or "not in time")
        except Exception:  # the boundary of this task: the transfer's own lease still ends it
            _LOG.exception("cancelling transfer %s failed", transfer_id)

    def add_facts(self, call_id: int, facts: LegFacts) -> None:
        """Take what was measured of a call."""
        self._outbox.facts(call_id, facts)

    def _end_reply(self, call_id: int, error: str, message: str) -> None:
        self._outbox.end(call_id, error, message)
        self._wake()

    async def _write_frames(self) -> None:
        frame = pb.Frame(hello=codec.hello_to_pb(self._worker.hello))
        try:
            while not self._ending:
                self._state_dirty = False
                self._silent_ticks = 0
                frame.state.CopyFrom(codec.state_to_pb(self._worker.state()))
                self._write_began_s = self._loop.time()
                await self._context.write(frame)
                self._write_began_s = None
                self.frames_sent += 1
                await self._something_to_send()
                frame = pb.Frame(chunks=self._outbox.take())
        except grpc.aio.BaseError as exc:
            _LOG.debug("session writer ends: %r", exc)

    async def _something_to_send(self) -> None:
        """Wait for a wake-up, then until a pass of the loop adds nothing: the end of the engine's step."""
        if not self._wake_due:
            self._tell_flushed()
            self._waiter = self._loop.create_future()
            await self._waiter
            self._waiter = None
        self._wake_due = False
        for _ in range(_MAX_GATHER_PASSES):
            seen = self._outbox.appended
            await asyncio.sleep(0)
            if self._outbox.appended == seen:
                break

    def _tell_flushed(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _wake(self) -> None:
        self._wake_due = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_stalled(self, unsent_bytes: int) -> bool:
        """Tell a router that does not read from one that was given much at once."""
        if self._write_began_s is None:
            return False
        is_far_behind = unsent_bytes > _FAR_BEHIND * self._max_unsent_bytes
        return is_far_behind or self._loop.time() - self._write_began_s > _STALL_S

    def _send_dirty_state(self) -> None:
        self._state_timer = None
        if self._state_dirty:
            self._wake()

    def _tick(self) -> None:
        self._silent_ticks += 1
        if self._silent_ticks >= _TICKS_PER_HEARTBEAT:
            self._wake()
        self._tick_timer = self._loop.call_later(channel.HEARTBEAT_S / _TICKS_PER_HEARTBEAT, self._tick)


class _Call:
    """One call of a session, and the sink its reply goes into."""

    __slots__ = ("_session", "call_id", "live", "started", "task")

    task: asyncio.Task[None]

    def __init__(self, session: ServedSession, call_id: int) -> None:
        self._session = session
        self.call_id = call_id
        self.live = True  # until the router aborts it
        self.started = False

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.started = True
        if self.live:
            self._session.start_reply(self.call_id, status, headers)

    def body(self, data: bytes) -> None:
        if self.live:
            self._session.add_body(self.call_id, data)

    def facts(self, facts: LegFacts) -> None:
        if self.live:
            self._session.add_facts(self.call_id, facts)
