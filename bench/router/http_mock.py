"""Mock OpenAI servers for the peers: a prefill or decode engine behind HTTP, and whatever routers ask engines.

Owns the least of HTTP/1.1 that routers need, so that the mock costs little beside the router that is measured. Must not
know which router asks.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final, cast

from bench.router.answers import DONE, JSON_TYPE, STREAM_TYPE, completion, token_event
from bench.router.stepping import Batch, Timing
from core.types import Role

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_MAX_TOKENS: Final = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
_STREAM: Final = re.compile(rb'"stream": *true')
_PROMPT: Final = re.compile(rb'"prompt": *"(\d{4})(\d{4})(\d{4})(\d{4})([^"]*)"')
_DEFAULT_TOKENS: Final = 16
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: " + STREAM_TYPE.encode() + b"\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ABOUT: Final = (
    b'{"model_path":"mock","tokenizer_path":"mock","served_model_name":"mock","model_id":"mock","is_generation":true,'
    b'"dp_size":1,"tp_size":1,"version":"0.5.6","max_total_num_tokens":100000,"internal_states":[{}]}'
)
# What routers ask of an engine before they use it; to all else they get _ABOUT.
_FACTS: Final[dict[bytes, tuple[str, bytes]]] = {
    b"/health": ("text/plain", b""),
    b"/ping": ("text/plain", b""),
    b"/version": (JSON_TYPE, b'{"version":"0.32.0"}'),
    b"/metrics": ("text/plain", b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"),
    b"/get_load": (JSON_TYPE, b'[{"dp_rank":0,"num_reqs":0,"num_waiting_reqs":0,"num_tokens":0}]'),
    b"/v1/models": (
        JSON_TYPE,
        b'{"object":"list","data":[{"id":"mock","object":"model","created":1763700000,"owned_by":"mock","root":"mock",'
        b'"max_model_len":32768}]}',
    ),
}


def _reply(content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


_TAILS: Final[dict[int, bytes]] = {}  # token ids after the first four, by how many bytes of prompt they stand for


def rendered(body: bytes) -> bytes:
    """Answer what token ids a prompt has: four for its number, so that prompts differ as their texts do, then filler.

    The engine's tokenizer is not what is measured, so the filler is made once for each length.
    """
    found = _PROMPT.search(body)
    if found is None:
        return _reply(JSON_TYPE, b'[{"request_id":"r","token_ids":[2],"sampling_params":{}}]')
    *number, rest = found.groups()
    tail = _TAILS.get(len(rest))
    if tail is None:
        tail = _TAILS[len(rest)] = b"".join(b",%d" % (100 + 37 * at % 30000) for at in range(len(rest) // 4))
    ids = b",".join(b"%d" % int(word) for word in number) + tail
    return _reply(JSON_TYPE, b'[{"request_id":"r","token_ids":[%b],"sampling_params":{"max_tokens":16}}]' % ids)


class HttpMock(asyncio.Protocol):
    """One connection to a mock engine."""

    def __init__(self, role: Role, timing: Timing, batch: Batch) -> None:
        self._role = role
        self._timing = timing
        self._batch = batch
        self._buffer = b""
        self._sequence: _Stream | None = None  # the stream that is being answered
        self._is_busy = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; uvloop sets TCP_NODELAY."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete, one after the other."""
        self._buffer = self._buffer + data if self._buffer else data
        self._take_requests()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what was being made for this client."""
        self._is_busy = True
        if self._sequence is not None:
            self._batch.remove(self._sequence)

    def _take_requests(self) -> None:
        while not self._is_busy and (end := self._buffer.find(b"\r\n\r\n") + 4) > 3:
            head, body, used = self._buffer[:end], b"", end
            if (length := _LENGTH.search(head)) is not None:
                used = end + int(length[1])
                body = self._buffer[end:used]
            elif _CHUNKED.search(head):
                used = self._buffer.find(b"\r\n0\r\n\r\n", end - 2) + 7
                body = self._buffer[end:used]  # only searched, so the framing may stay
                if used < end:
                    return
            if len(self._buffer) < used:
                return
            self._buffer = self._buffer[used:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        if head.startswith(b"GET"):
            self._transport.write(_reply(*_FACTS.get(path, (JSON_TYPE, _ABOUT))))
        elif path.endswith(b"/render"):
            self._transport.write(rendered(body))
        else:
            self._is_busy = True
            if self._timing.ttft_us:
                loop = asyncio.get_running_loop()
                loop.call_later(self._timing.ttft_us / 1e6, self._generate, body)
            else:
                self._generate(body)

    def _generate(self, body: bytes) -> None:
        is_prefill = self._role is Role.PREFILL
        found = _MAX_TOKENS.search(body)
        tokens = 1 if is_prefill else max(1, int(found[1])) if found else _DEFAULT_TOKENS
        if _STREAM.search(body):
            self._transport.write(_STREAM_HEAD)  # at once, as uvicorn does
            self._sequence = _Stream(self, self._transport, tokens)
            if is_prefill:
                self._sequence.end(token_event(time.monotonic_ns(), is_last=True))
            else:
                self._batch.add(self._sequence)
        else:
            self._transport.write(_reply(JSON_TYPE, completion(tokens, hands_over=is_prefill)))
            self.answered()

    def answered(self) -> None:
        """Go on with the next request."""
        self._is_busy = False
        self._sequence = None
        if self._buffer:
            self._take_requests()


class _Stream:
    """A stream of events as chunks of HTTP."""

    __slots__ = ("_connection", "_transport", "left")

    def __init__(self, connection: HttpMock, transport: asyncio.Transport, tokens: int) -> None:
        self._connection = connection
        self._transport = transport
        self.left = tokens

    def token(self, event: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))

    def end(self, event: bytes) -> None:
        last = event + DONE
        self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        self._connection.answered()
