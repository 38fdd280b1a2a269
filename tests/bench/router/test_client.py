"""The client asks right, and reads answers however they are cut."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.router.answers import DONE, completion, token_event
from bench.router.client import Clients, Load, Requests, _Connection


class Transport:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.is_aborted = True


def connect(load: Load, first_tokens: int | None = None) -> tuple[Clients, _Connection, Transport]:
    clients, transport = Clients(load, 1), Transport()
    connection = _Connection(clients, first_tokens)
    connection.connection_made(cast(asyncio.Transport, transport))
    return clients, connection, transport


def stream(tokens: int, *, whole_events: bool) -> bytes:
    """Make an answer as engines and routers write it: an event a chunk, or everything in one."""
    events = [token_event(time.monotonic_ns(), is_last=n == tokens - 1) for n in range(tokens)]
    events[-1] += DONE
    chunks = events if whole_events else [b"".join(events)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        + framed
        + b"0\r\n\r\n"
    )


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted({each % len(data) for each in at} - {0}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("prompt_bytes", [16, 400, 16_000])
def test_requests_are_whole_and_their_prompts_differ_from_the_start(prompt_bytes: int) -> None:
    requests = Requests(Load(1, prompt_bytes=prompt_bytes, max_tokens=64, stream=True), 8000)
    prompts = []
    for request in (requests.next(), requests.next(7), requests.next()):
        head, _, body = request.partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in head
        prompts.append(json.loads(body))
    assert [each["max_tokens"] for each in prompts] == [64, 7, 64]
    assert all(each["stream"] and len(each["prompt"]) == prompt_bytes for each in prompts)
    assert len({each["prompt"][:16] for each in prompts}) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=12), st.booleans(), st.integers(1, 5))
def test_streams_are_read_however_they_are_cut(at: list[int], whole_events: bool, tokens: int) -> None:
    clients, connection, transport = connect(Load(1, max_tokens=tokens, stream=True))
    for _ in range(2):
        for piece in cut(stream(tokens, whole_events=whole_events), at):
            connection.data_received(piece)
    notes = clients.notes
    assert (len(notes.latencies), len(notes.relays), len(notes.first_tokens)) == (2, 2 * tokens, 2)
    assert len(notes.gaps) == 2 * (tokens - 1)
    assert all(relay >= 0 for relay in notes.relays)
    assert notes.errors == 0
    assert len(transport.written) == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=6), st.booleans())
def test_documents_are_read_however_they_are_cut(at: list[int], is_chunked: bool) -> None:
    clients, connection, transport = connect(Load(1))
    body = completion(16)
    framing = (
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" if is_chunked else b"Content-Length: %d\r\n\r\n%b"
    )
    for piece in cut(b"HTTP/1.1 200 OK\r\n" + framing % (len(body), body), at):
        connection.data_received(piece)
    assert len(clients.notes.latencies) == 1
    assert len(transport.written) == 2


def test_tokens_that_do_not_come_are_an_error() -> None:
    clients, connection, _ = connect(Load(1, max_tokens=4, stream=True))
    connection.data_received(stream(3, whole_events=True))
    assert clients.notes.first_error == "3 of 4 tokens came"
    assert clients.notes.latencies == []


def test_the_first_stream_may_be_shorter() -> None:
    clients, connection, _ = connect(Load(1, max_tokens=4, stream=True), first_tokens=2)
    connection.data_received(stream(2, whole_events=True))
    connection.data_received(stream(4, whole_events=True))
    assert (len(clients.notes.latencies), clients.notes.errors) == (2, 0)


async def test_a_refusal_is_counted_once_and_the_connection_made_anew() -> None:
    clients, connection, transport = connect(Load(1))
    connection.data_received(b"HTTP/1.1 429 Too Many\r\ncontent-length: 2\r\n\r\n{}")
    connection.connection_lost(None)
    assert transport.is_aborted
    assert clients.notes.errors == 1
    assert clients.notes.first_error.startswith("HTTP/1.1 429")
    clients.is_over = True


def test_nothing_is_asked_when_it_is_over() -> None:
    clients, connection, transport = connect(Load(1, max_tokens=1, stream=True))
    clients.is_over = True
    connection.data_received(stream(1, whole_events=True))
    assert (len(transport.written), transport.is_aborted) == (1, True)
