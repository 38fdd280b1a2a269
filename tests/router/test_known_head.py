"""A known head cuts out of bytes what the HTTP parser makes of them; what it does not know it leaves alone."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.known_head import MAX_BYTES, KnownHead

BODY = b'{"prompt": "the sea"}'
LINES = [b"host: x", b"Content-Type: application/json", b"X-Length: content", b"connection: keep-alive"]


class Parsed:
    """What httptools tells of one request."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.num_complete = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.num_complete += 1


def request(body: bytes, *lines: bytes, length: bytes = b"content-length: %d") -> bytes:
    told = length % len(body) if b"%d" in length else length
    return b"\r\n".join((b"POST /v1/completions HTTP/1.1", *lines, told)) + b"\r\n\r\n" + body


def known(data: bytes) -> KnownHead | None:
    return KnownHead.of(data, Parsed(data).headers, method="POST", path="/a", served_as="/a")


@given(
    st.lists(st.sampled_from(LINES), max_size=4),
    st.binary(max_size=300),
    st.sampled_from([b"content-length: %d", b"Content-Length:%d", b"CONTENT-LENGTH:   %d"]),
)
def test_what_it_cuts_is_what_the_parser_makes_of_it(lines: list[bytes], body: bytes, length: bytes) -> None:
    head = known(request(BODY, *lines, length=length))
    assert head is not None
    data = request(body, *lines, length=length)
    found, parsed = head.whole(data), Parsed(data)
    assert found is not None
    assert (found.body, parsed.num_complete) == (parsed.body, 1)
    assert head.headers | {b"content-length": found.length} == dict(parsed.headers)


@given(st.integers(0, len(request(BODY, *LINES)) - 1), st.binary(min_size=1, max_size=3))
def test_bytes_that_are_anything_else_are_left_alone(at: int, other: bytes) -> None:
    head, data = known(request(BODY, *LINES)), request(BODY, *LINES)
    assert head is not None
    assert head.whole(data[:at]) is None
    assert head.whole(data + other) is None
    changed = data[:at] + other + data[at + 1 :]
    found = head.whole(changed)
    if found is not None:  # another body, or another way to write the same length
        parsed = Parsed(changed)
        assert (found.body, parsed.num_complete) == (parsed.body, 1)
        assert head.headers | {b"content-length": found.length} == dict(parsed.headers)


@pytest.mark.parametrize(
    "lines",
    [
        (b"transfer-encoding: identity",),
        (b"expect: 100-continue",),
        (b"x-other: content-length",),
        (b"upgrade: h2c",),
        (b"x: " + b"y" * MAX_BYTES,),
    ],
)
def test_heads_that_mean_more_are_not_kept(lines: tuple[bytes, ...]) -> None:
    data = request(BODY, *lines)
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in (*lines, b"content-length: 21"))]
    assert KnownHead.of(data, headers, method="POST", path="/a", served_as="/a") is None


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"21"), (b"content-length", b"21")]])
def test_heads_without_one_length_are_not_kept(headers: list[tuple[bytes, bytes]]) -> None:
    assert KnownHead.of(request(BODY), headers, method="POST", path="/a", served_as="/a") is None


@pytest.mark.parametrize("length", [b"+21", b"0x15", b"2 1", b"", b"1" * 13, b"\xb2\xb1"])
def test_a_length_is_digits_alone(length: bytes) -> None:
    head = known(request(BODY))
    assert head is not None
    assert head.whole(request(BODY, length=b"content-length: " + length)) is None
