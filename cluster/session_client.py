"""The router's end of the session with one worker: many calls over one connection.

Owns the calls in flight on it and the verdict that the worker is lost. Must not know membership, nor what a call is
about. On the router's hot path: no task, whatever the number of calls, and one write for all commands of a pass of
the loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from cluster import codec, wire
from cluster.connection import Connection
from cluster.inflight import InflightWork
from cluster.pb import worker_pb2 as pb
from cluster.reply import OpenCall, Reply
from core.bounded import within
from core.component_tls import CLOSED_PLAIN, CLOSED_TLS, ClientTLS, tls_remedy
from core.engine import HttpCall
from core.errors import BatonError, Overloaded, PayloadTooLarge, Unauthorized, WorkerLost
from core.handshake import RouterHandshake
from core.types import Handover, Leg, WorkerHello, WorkerRecord, WorkerState

DEFAULT_MAX_UNREAD_BYTES: Final = 4 << 20
DEFAULT_MAX_QUEUED_COMMANDS: Final = 10_000
_MAX_QUEUED_BYTES: Final = 1 << 30
_TICK_S: Final = 0.25
_TICKS_PER_HEARTBEAT: Final = round(wire.HEARTBEAT_S / 2 / _TICK_S)  # often enough that none is late
_CLOSE_S: Final = 2.0


class WorkerSession:
    """One connection to one worker; made once, never reconnected: a lost session is replaced by a new object."""

    def __init__(
        self,
        record: WorkerRecord,
        *,
        token: str,
        on_change: Callable[[], None],
        tls: ClientTLS | None = None,
        max_body_bytes: int = wire.DEFAULT_MAX_BODY_BYTES,
        max_unread_bytes: int = DEFAULT_MAX_UNREAD_BYTES,
        max_queued_commands: int = DEFAULT_MAX_QUEUED_COMMANDS,
        silence_s: float = wire.SILENCE_S,
    ) -> None:
        """Prepare a session; `on_change` is called when state, liveness or calls in flight changed."""
        self._record = record
        self._token = token
        self._tls = tls
        self._on_change = on_change
        self._max_body_bytes = max_body_bytes
        self._max_unread_bytes = max_unread_bytes
        self._max_queued_commands = max_queued_commands
        self._max_silent_ticks = max(1, round(silence_s / _TICK_S))
        self._max_busy_silent_ticks = max(1, round(min(silence_s, wire.BUSY_SILENCE_S) / _TICK_S))
        self._hello: WorkerHello | None = None
        self._state = WorkerState()
        self._sent_state = pb.WorkerState()  # what `_state` was read from
        self._alive = False
        self._connection: Connection | None = None
        self._greeted: asyncio.Future[None] | None = None  # done once the worker has said who it is, or will not
        self._calls: dict[int, OpenCall] = {}  # all and only those submitted and not ended
        self._inflight = InflightWork()  # sums over _calls
        self._next_call_id = 1
        self._ticks = 0
        self._silent_ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.idle = asyncio.Event()  # set while no call is in flight
        self.idle.set()

    @property
    def record(self) -> WorkerRecord:
        """The worker as announced."""
        return self._record

    @property
    def hello(self) -> WorkerHello:
        """What the worker said of itself; only once connected."""
        assert self._hello is not None, "connect first"
        return self._hello

    @property
    def state(self) -> WorkerState:
        """The worker's state in its latest frame."""
        return self._state

    @property
    def alive(self) -> bool:
        """Whether calls can be submitted."""
        return self._alive

    @property
    def inflight_requests(self) -> int:
        """Calls submitted here and not ended."""
        return len(self._calls)

    @property
    def inflight(self) -> InflightWork:
        """Sums over those calls, by the submitter's estimates; changes as they go on."""
        return self._inflight

    async def connect(self, timeout_s: float) -> WorkerHello:
        """Open the connection and wait for the worker's hello; call once.

        Raises Unauthorized when the token is refused, WorkerLost when the worker cannot be reached in time or is not
        the one announced. A session that failed to connect is closed.
        """
        loop = asyncio.get_running_loop()
        self._greeted = loop.create_future()
        failure: Exception | None = None
        try:
            await within(timeout_s, self._meet(self._greeted))
            if not self._alive:
                raise WorkerLost(self.lost_reason)
        except (TimeoutError, OSError, BatonError) as exc:
            failure = exc
        except BaseException:
            self._lose("the session was closed")
            raise
        if failure is not None:
            await self.close()
            raise self._connect_failure(failure, timeout_s) from failure
        self._timer = loop.call_later(_TICK_S, self._tick)
        return self.hello

    async def _meet(self, greeted: asyncio.Future[None]) -> None:
        host, _, port = self._record.address.rpartition(":")
        await asyncio.get_running_loop().create_connection(
            self._open,
            host.strip("[]"),
            int(port),
            ssl=self._tls.context if self._tls else None,
            server_hostname=self._tls.server_name if self._tls else None,
        )
        await greeted

    def submit(
        self, leg: Leg, call: HttpCall, handover: Handover | None, *, prompt_tokens: int = 0, slack_s: float = 0.0
    ) -> Reply:
        """Send one leg of a request to the worker, to be read from the reply; see `send`."""
        reply = Reply(max_unread_bytes=self._max_unread_bytes)
        self.send(reply, leg, codec.SubmitEncoder(call, handover, prompt_tokens=prompt_tokens, slack_s=slack_s))
        return reply

    def send(self, call: OpenCall, leg: Leg, order: codec.SubmitEncoder) -> None:
        """Send one leg of a request to the worker and feed `call` with the reply; return at once.

        The order's `slack_s` is the time until the prompt must be begun to keep its SLO; the worker orders its queue by
        it. Its `prompt_tokens` are what the worker has to prefill, counted until its first output byte; a decode leg
        owes none, and its tokens are context only.
        Raises WorkerLost, PayloadTooLarge for a body beyond the limit, Overloaded when the worker takes no commands.
        """
        connection = self._connection
        if not self._alive or connection is None:
            raise WorkerLost(f"{self._record.worker_id}: {self.lost_reason or 'not connected'}")
        if order.body_bytes > self._max_body_bytes:
            raise PayloadTooLarge(f"the body has {order.body_bytes} bytes, the limit is {self._max_body_bytes}")
        if (
            connection.unsent_messages >= self._max_queued_commands
            or connection.unsent_bytes + order.body_bytes > _MAX_QUEUED_BYTES
        ):
            raise Overloaded(f"{connection.unsent_messages} commands wait for {self._record.worker_id}")
        call_id = self._next_call_id
        self._next_call_id += 1
        call.submitted(call_id, self._abort)
        call.prompt_tokens = 0 if leg is Leg.DECODE else order.prompt_tokens
        call.context_tokens = 0 if leg is Leg.PREFILL else order.prompt_tokens
        if not self._calls:
            self.idle.clear()
            self._silent_ticks = 0  # up to here it was not due as often
        self._calls[call_id] = call
        call.tpot_s = None if leg is Leg.PREFILL else order.tpot_s
        self._inflight.add(leg, order.prompt_tokens, _now_s())
        if call.tpot_s is not None:
            self._inflight.promise(call.tpot_s)
        connection.send(order.encode(call_id, leg))
        self._on_change()

    def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        """Tell the worker that a hand-over will not come; a lost worker needs no telling."""
        self._send(pb.Command(cancel_transfer=pb.CancelTransfer(transfer_id=transfer_id, reason=reason)))

    def drain(self) -> None:
        """Tell the worker to take no new legs."""
        self._send(pb.Command(drain=pb.Drain()))

    async def close(self) -> None:
        """End the connection; calls in flight fail with WorkerLost; idempotent."""
        self._lose("the session was closed")
        if self._connection is not None and not self._connection.closed.done():
            await asyncio.wait([self._connection.closed], timeout=_CLOSE_S)

    # -- what the connection tells, see cluster.connection.Receiver ---------------------------------------------------

    def on_open(self) -> None:
        """Wait for the hello."""

    def on_message(self, message: bytes) -> None:
        """Take one frame."""
        frame = codec.frame_from_bytes(message)
        if self._hello is None:
            self._hello = self._announced(frame)
            self._alive = True
            if self._greeted is not None and not self._greeted.done():
                self._greeted.set_result(None)
        self._take_frame(frame)

    def on_writable(self) -> None:
        """Do nothing: the connection sends what waits."""

    def on_lost(self, error: Exception | None) -> None:
        """Give the worker up."""
        if self._greeted is not None and not self._greeted.done():
            early = WorkerLost(f"the connection was closed before a hello; {self._closed_early}")
            self._greeted.set_exception(error or early)
        self._lose("the worker ended the stream" if error is None else str(error) or type(error).__name__)

    def _open(self) -> Connection:
        self._connection = Connection(self, RouterHandshake(self._token), max_message_bytes=wire.MAX_MESSAGE_BYTES)
        return self._connection

    def _announced(self, frame: pb.Frame) -> WorkerHello:
        if not frame.HasField("hello"):
            raise WorkerLost(frame.goodbye or "the stream did not begin with a hello")
        hello = codec.hello_from_pb(frame.hello)
        if (hello.worker_id, hello.epoch) != (self._record.worker_id, self._record.epoch):
            raise WorkerLost(f"{self._record.address} is {hello.worker_id} of epoch {hello.epoch}")
        return hello

    def _connect_failure(self, exc: BaseException, timeout_s: float) -> BatonError:
        name = f"{self._record.worker_id} at {self._record.address}"
        if isinstance(exc, TimeoutError) and not exc.args:  # ours, and not the system's
            return WorkerLost(f"{name} did not answer within {timeout_s} s")
        if isinstance(exc, Unauthorized):
            return Unauthorized(f"{name}: {exc}")
        return WorkerLost(f"{name}: {self._reason(exc)}")

    def _reason(self, exc: BaseException) -> str:
        """Say why the connection failed, and what to do where TLS may be the cause."""
        if isinstance(exc, ssl.SSLError):
            return f"TLS failed ({exc.reason or exc}): {tls_remedy(str(exc))}"
        if isinstance(exc, (ConnectionResetError, ConnectionAbortedError)):
            return f"{exc or 'closed'}; {self._closed_early}"
        return str(exc)

    @property
    def _closed_early(self) -> str:
        """What a worker may mean by closing the connection before it said who it is."""
        return CLOSED_TLS if self._tls else CLOSED_PLAIN

    def _send(self, command: pb.Command) -> None:
        if self._alive and self._connection is not None:
            self._connection.send(command.SerializeToString())

    def _abort(self, call: OpenCall) -> None:
        self._forget(call)
        self._on_change()
        self._send(pb.Command(abort=pb.Abort(call_id=call.call_id)))

    def _forget(self, call: OpenCall) -> None:
        if self._calls.pop(call.call_id, None) is not None:
            self._inflight.context_tokens -= call.context_tokens
            if call.tpot_s is not None:
                self._inflight.promise_over(call.tpot_s)
            self._prompt_done(call)
            if not self._calls:
                self.idle.set()

    def _prompt_done(self, call: OpenCall) -> None:
        if call.prompt_tokens:
            self._inflight.prompt_done(call.prompt_tokens, _now_s())
            call.prompt_tokens = 0

    def _take_frame(self, frame: pb.Frame) -> None:
        calls = self._calls
        has_changed = False
        for chunk in frame.chunks:
            call = calls.get(chunk.call_id)
            if call is not None:  # else it crossed the abort on the way
                has_changed |= self._take_chunk(call, chunk)
        state = frame.state
        if state != self._sent_state:  # the comparison is in C, the reading is not
            self._sent_state = state
            self._state = codec.state_from_pb(state)
            if self._state.stalled:  # before anybody takes it for a worker to route to
                self._lose("its engine core stands still")
                return
            has_changed = True
        if has_changed:
            self._on_change()
        if frame.goodbye:
            self._lose(frame.goodbye)

    def _take_chunk(self, call: OpenCall, chunk: pb.Chunk) -> bool:
        """Feed a call; tell whether that changed what the worker owes."""
        has_changed = False
        if status := chunk.status:
            call.add_head(status, codec.headers_from_pb(chunk.headers))
        if token_ids := chunk.token_ids:
            call.add_tokens(token_ids, chunk.group_sizes)  # the latter is empty, mostly
        if (data := chunk.data) and not call.ended:
            if call.prompt_tokens:
                self._prompt_done(call)
                has_changed = True
            call.add_body(data)
        if chunk.last and not call.ended:
            if chunk.HasField("facts"):
                call.facts = codec.facts_from_pb(chunk.facts)
            self._forget(call)
            call.end(codec.error_from_name(chunk.error, chunk.error_message) if chunk.error else None)
            has_changed = True
        return has_changed

    def _tick(self) -> None:
        # Counts ticks and not seconds, so that a stall of this process is not held against the worker.
        connection = self._connection
        assert connection is not None
        self._silent_ticks = 0 if connection.heard else self._silent_ticks + 1
        connection.heard = False
        if self._silent_ticks >= (self._max_busy_silent_ticks if self._calls else self._max_silent_ticks):
            self._lose(f"no frame for {self._silent_ticks * _TICK_S:g} s")
            return
        self._ticks += 1
        if self._ticks % _TICKS_PER_HEARTBEAT == 0:
            connection.beat()
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _lose(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self._alive = False
        self.lost_reason = reason
        self.lost.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.abort()
        calls, self._calls, self._inflight = self._calls, {}, InflightWork()
        for call in calls.values():
            if not call.ended:  # by what another one's end led to
                call.end(WorkerLost(f"{self._record.worker_id}: {reason}"))
        self.idle.set()
        self._on_change()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
