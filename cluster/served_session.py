"""One router's session with a worker: its calls, and the frames that carry their replies.

Owns the tasks of the calls and the gathering of everything made in one engine step into one frame. Must not know how
sessions are accepted (cluster.session_server) nor what a leg does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from cluster import codec, wire
from cluster.connection import Connection
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
_TICKS_PER_HEARTBEAT: Final = round(wire.HEARTBEAT_S / wire.BUSY_HEARTBEAT_S)
_SILENT_TICKS: Final = round(wire.SILENCE_S / wire.HEARTBEAT_S * _TICKS_PER_HEARTBEAT)
_MAX_GATHER_PASSES: Final = 8  # passes of the loop that one frame waits for stragglers of its step


class ServedSession:
    """Runs one session until its router leaves, misbehaves or stops reading."""

    def __init__(
        self,
        worker: Worker,
        *,
        max_unsent_bytes: int,
        accepts_calls: Callable[[], bool],
        on_open: Callable[[ServedSession], None],
    ) -> None:
        """Prepare a session; `on_open` is called once its router is known."""
        self._worker = worker
        self._max_unsent_bytes = max_unsent_bytes
        self._accepts_calls = accepts_calls
        self._on_open = on_open
        self._loop = asyncio.get_running_loop()
        self._group = asyncio.TaskGroup()
        self._calls: dict[int, _Call] = {}  # all and only the calls whose task is not done
        self._outbox = Outbox()
        self._over: asyncio.Future[None] = self._loop.create_future()  # done when the session is to end
        self._over_reason = ""
        self._ending = False
        self.connection: Connection  # given by the owner, before anything else
        self._gather_due = False
        self._gather_passes = 0
        self._gathered = 0  # of the outbox, when the latest pass looked
        self._flushed: asyncio.Future[None] | None = None
        self._state_dirty = False
        self._state_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._unsent_ticks = 0  # since the latest frame
        self._silent_ticks = 0  # since the router was heard
        self.frames_sent = 0
        self.closed = asyncio.Event()  # set by the owner once `run` has returned or raised

    @property
    def peer(self) -> str:
        """Name the router's address."""
        return self.connection.peer

    async def run(self) -> str:
        """Serve until the router is gone or `end` is called; return why this side ended it, empty if it did not.

        Leaves no task behind: every call still running is cancelled and awaited. The connection is closed once what
        was written before has reached the router.
        """
        try:
            async with self._group:
                self._send_frame(pb.Frame(hello=codec.hello_to_pb(self._worker.hello)))
                self._tick_timer = self._loop.call_later(wire.HEARTBEAT_S / _TICKS_PER_HEARTBEAT, self._tick)
                await self._over
                self._ending = True
                for task in self.call_tasks():
                    task.cancel()
                self._outbox.take()
        finally:
            self._ending = True
            self._tell_flushed()
            for timer in (self._tick_timer, self._state_timer):
                if timer is not None:
                    timer.cancel()
            goodbye = pb.Frame(goodbye=self._over_reason).SerializeToString() if self._over_reason else b""
            self.connection.end(goodbye, _LAST_WRITE_S)
        return self._over_reason

    def cut_off(self) -> None:
        """Close the connection at once, whatever is unsent."""
        self.connection.abort()

    async def wait_closed(self) -> None:
        """Wait until `run` is done and the connection closed."""
        await self.closed.wait()
        await asyncio.wait([self.connection.closed])

    # -- what the connection tells, see cluster.connection.Receiver ---------------------------------------------------

    def on_open(self) -> None:
        """Begin: the router is known."""
        self._on_open(self)

    def on_message(self, message: bytes) -> None:
        """Obey one command."""
        if not self._ending:
            self._obey(codec.command_from_bytes(message))

    def on_writable(self) -> None:
        """Send what was gathered while the router did not read."""
        self._wake()

    def on_lost(self, error: Exception | None) -> None:
        """End: the router is gone."""
        if error is not None:
            _LOG.debug("session with %s: %r", self.peer, error)
        self.end("")

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
        if not self._ending and (self._outbox or self.connection.unsent_messages or self.connection.is_paused):
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
                _LOG.warning("command of an unknown kind from %s ignored", self.peer)

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

    def add_tokens(self, call_id: int, token_ids: Sequence[int]) -> None:
        """Take the tokens of the next bytes of a reply."""
        self._outbox.tokens(call_id, token_ids)

    def _end_reply(self, call_id: int, error: str, message: str) -> None:
        self._outbox.end(call_id, error, message)
        self._wake()

    def _send_frame(self, frame: pb.Frame) -> None:
        self._state_dirty = False
        self._unsent_ticks = 0
        frame.state.CopyFrom(codec.state_to_pb(self._worker.state()))
        message = frame.SerializeToString()
        if len(message) > wire.MAX_MESSAGE_BYTES:
            self.end(f"a frame of {len(message)} bytes cannot be sent")
            return
        self.connection.send(message)
        self.connection.flush()
        self.frames_sent += 1
        self._tell_flushed()

    def _wake(self) -> None:
        """Send a frame once a pass of the loop adds nothing to it: the end of the engine's step."""
        if not self._gather_due:
            self._gather_due = True
            self._gather_passes = 0
            self._gathered = self._outbox.appended
            self._loop.call_soon(self._gather)

    def _gather(self) -> None:
        if self._outbox.appended != self._gathered and self._gather_passes < _MAX_GATHER_PASSES:
            self._gather_passes += 1
            self._gathered = self._outbox.appended
            self._loop.call_soon(self._gather)
            return
        self._gather_due = False
        if not self._ending and not self.connection.is_paused:  # else `on_writable` wakes
            self._send_frame(pb.Frame(chunks=self._outbox.take()))

    def _tell_flushed(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _is_stalled(self, unsent_bytes: int) -> bool:
        """Tell a router that does not read from one that was given much at once."""
        if not self.connection.is_paused:
            return False
        is_far_behind = unsent_bytes > _FAR_BEHIND * self._max_unsent_bytes
        return is_far_behind or self._loop.time() - self.connection.paused_at_s > _STALL_S

    def _send_dirty_state(self) -> None:
        self._state_timer = None
        if self._state_dirty:
            self._wake()

    def _tick(self) -> None:
        # Counts ticks and not seconds, so that a stall of this process is not held against the router.
        self._silent_ticks = 0 if self.connection.heard else self._silent_ticks + 1
        self.connection.heard = False
        if self._silent_ticks >= _SILENT_TICKS:
            self.connection.abort()
            self.end("")
            return
        self._unsent_ticks += 1
        if self._calls:
            self.connection.beat()
        if self._unsent_ticks >= _TICKS_PER_HEARTBEAT:
            self._wake()
        self._tick_timer = self._loop.call_later(wire.HEARTBEAT_S / _TICKS_PER_HEARTBEAT, self._tick)


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

    def tokens(self, token_ids: Sequence[int]) -> None:
        if self.live:
            self._session.add_tokens(self.call_id, token_ids)
