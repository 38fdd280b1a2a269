"""One connection between router and worker, either end: authenticated first, then messages both ways.

Owns the transport, the gathering of everything sent in one pass of the loop into one write, and back-pressure. Must not
know what messages hold, nor calls.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from cluster.wire import HEARTBEAT, MessageReader, length_of
from core.errors import BatonError
from core.handshake import Handshake, Refused

HANDSHAKE_S: Final = 5.0
HIGH_WATER_BYTES: Final = 1 << 20  # of bytes given to the transport: beyond, the rest waits here


class Receiver(Protocol):
    """Who uses a connection; called from the event loop, `on_lost` last and once."""

    def on_open(self) -> None:
        """Learn that the other end is known; messages may be sent from here on."""
        ...

    def on_message(self, message: bytes) -> None:
        """Take one message; a BatonError ends the connection."""
        ...

    def on_writable(self) -> None:
        """Learn that the other end reads again."""
        ...

    def on_lost(self, error: Exception | None) -> None:
        """Learn that the connection is over; None: the other end closed it."""
        ...


class Connection(asyncio.Protocol):
    """Gives whole messages to its receiver and sends what it is given, in order."""

    def __init__(self, receiver: Receiver, handshake: Handshake, *, max_message_bytes: int) -> None:
        self._receiver = receiver
        self._handshake = handshake
        self._early = b""  # of the handshake
        self._reader = MessageReader(max_message_bytes)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # runs until the other end is known, or while the end is near
        self._is_open = False
        self._flush_due = False
        self._error: Exception | None = None
        self._parts: list[bytes] = []  # what the next write sends
        self.unsent_messages = 0  # given to `send` and not to the transport
        self.unsent_bytes = 0
        self.is_paused = False  # the other end does not read
        self.paused_at_s = 0.0
        self.heard = False  # something came; for the receiver, to reset
        self.beaten = False  # something was sent; likewise
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def peer(self) -> str:
        """Name the other end's address."""
        return str(self._transport.get_extra_info("peername")) if self._transport is not None else "nobody"

    def send(self, message: bytes) -> None:
        """Send one message in the write at the end of this pass of the loop; dropped once the connection is over."""
        if not self._is_open:
            return
        self._parts += (length_of(message), message)
        self.unsent_messages += 1
        self.unsent_bytes += len(message)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def beat(self) -> None:
        """Send a heart-beat if nothing was sent since the last call and the other end reads."""
        if not self.beaten and self._is_open and not self.is_paused and self._transport is not None:
            self._transport.write(HEARTBEAT)
        self.beaten = False

    def flush(self) -> None:
        """Give everything sent so far to the transport, unless the other end does not read."""
        self._flush_due = False
        if self.is_paused or not self._parts or self._transport is None:
            return
        data = b"".join(self._parts)
        self._parts.clear()
        self.unsent_messages = self.unsent_bytes = 0
        self.beaten = True
        self._transport.write(data)

    def end(self, last_message: bytes, timeout_s: float) -> None:
        """Send one message more even if the other end does not read, and close when it is out, or in `timeout_s`."""
        if not self._is_open or self._transport is None:
            self.abort()
            return
        self.is_paused = False
        if last_message:
            self.send(last_message)
        self.flush()
        self._is_open = False
        self._transport.close()
        self._timer = self._loop.call_later(timeout_s, self.abort)

    def abort(self) -> None:
        """Close at once; what is unsent is lost."""
        self._is_open = False
        if self._transport is not None:
            self._transport.abort()
        elif not self.closed.done():
            self.closed.set_result(None)  # nobody tells of one that never was: TLS may have failed before it began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        if self.closed.done():  # given up while TLS was agreed on
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._timer = self._loop.call_later(HANDSHAKE_S, self.abort)
        if opening := self._handshake.opening():
            self._transport.write(opening)

    def data_received(self, data: bytes) -> None:
        """Take bytes: of the handshake first, then of messages."""
        self.heard = True
        try:
            if self._handshake.needed:
                data = self._shake_hands(data)
            if self._is_open and data:
                for message in self._reader.feed(data):
                    if self._is_open:  # the receiver may have ended it meanwhile
                        self._receiver.on_message(message)
        except Refused as exc:
            self._error = exc
            if self._transport is not None:
                self._transport.write(exc.reply)
                self._transport.close()
        except BatonError as exc:
            self._error = exc
            self.abort()

    def pause_writing(self) -> None:
        """Hold back what is sent from here on."""
        self.is_paused = True
        self.paused_at_s = self._loop.time()

    def resume_writing(self) -> None:
        """Send what was held back."""
        self.is_paused = False
        self.flush()
        if not self.is_paused and self._is_open:
            self._receiver.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver."""
        self._is_open = False
        self._parts.clear()
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        self._receiver.on_lost(self._error or exc)

    def _shake_hands(self, data: bytes) -> bytes:
        """Go on with the handshake; return the bytes that follow it."""
        data = self._early + data
        while (needed := self._handshake.needed) and len(data) >= needed:
            answer = self._handshake.take(data[:needed])
            data = data[needed:]
            if answer and self._transport is not None:
                self._transport.write(answer)
        if needed:
            self._early = data
            return b""
        self._early = b""
        self._is_open = True
        if self._timer is not None:
            self._timer.cancel()
        self._receiver.on_open()
        return data
