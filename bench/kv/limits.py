"""What the machine itself gives: one thread that copies scattered blocks, and two plain TCP streams.

Each end is a Side. The copy happens in the receiver's process, between two caches of its own. The TCP streams do what
iperf3 does: the same 128 KiB again and again, no cache, no staging.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from bench.kv.cache import LAYERS, Bytes, Job, full_cache
from bench.kv.side import SENDER, Side, Span

_STREAMS: Final = 2
_PIECE_BYTES: Final = 128 << 10  # iperf3's default for TCP
_WAIT_S: Final = 60.0


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the sending end of the limit that `options` names."""
    return _TcpEnd(SENDER) if options["limit"] == "tcp" else _Nobody()


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the receiving end."""
    return _TcpEnd("receiver") if options["limit"] == "tcp" else _Copy(cache)


class _Nobody:
    address = ""

    def meet(self, address: str) -> None:
        """Nobody is met."""

    def prepare(self, job: Job) -> None:
        """Nothing is prepared."""

    def run(self, job: Job) -> Span:
        """Leave the work to the other end."""
        return Span()

    def close(self) -> None:
        """Nothing is held."""


class _Copy(_Nobody):
    """Copies block by block, layer by layer, in one thread."""

    def __init__(self, cache: Bytes) -> None:
        self._target = cache
        self._source = full_cache(cache.shape[1])

    def run(self, job: Job) -> Span:
        pairs = list(zip(job.source.tolist(), job.target.tolist(), strict=True))
        began_s = time.monotonic()
        for layer in range(LAYERS):
            source, target = self._source[layer], self._target[layer]
            for left, right in pairs:
                target[right] = source[left]
        return Span(began_s, time.monotonic())


class _TcpEnd(_Nobody):
    def __init__(self, role: str) -> None:
        self._role = role
        self._streams: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0)) if role != SENDER else None
        self.address = str(self._listener.getsockname()[1]) if self._listener else ""

    def meet(self, address: str) -> None:
        for _ in range(_STREAMS):
            if self._listener is None:
                stream = socket.create_connection(("127.0.0.1", int(address)), _WAIT_S)
            else:
                self._listener.settimeout(_WAIT_S)
                stream = self._listener.accept()[0]
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream.settimeout(_WAIT_S)
            self._streams.append(stream)

    def run(self, job: Job) -> Span:
        share = job.num_bytes // _STREAMS
        move = _send if self._role == SENDER else _receive
        began_s = time.monotonic()
        _in_threads([lambda stream=stream: move(stream, share) for stream in self._streams])  # type: ignore[misc]
        return Span(began_s) if self._role == SENDER else Span(ended_s=time.monotonic())

    def close(self) -> None:
        for each in (*self._streams, self._listener):
            if each is not None:
                each.close()


def _in_threads(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_WAIT_S)


def _send(stream: socket.socket, size: int) -> None:
    piece = memoryview(bytearray(_PIECE_BYTES))
    while size:
        size -= stream.send(piece[: min(size, _PIECE_BYTES)])


def _receive(stream: socket.socket, size: int) -> None:
    piece = memoryview(bytearray(_PIECE_BYTES))
    while size:
        got = stream.recv_into(piece[: min(size, _PIECE_BYTES)])
        if not got:
            raise ConnectionError("the sender's stream ended early")
        size -= got
