"""Connections are kept, used again, and given up within their bounds."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from bench.serving.connection import ConnectionPool
from bench.serving.document import ask
from bench.serving.endpoint import endpoint, trust
from core.errors import BatonError
from tests.support.certificates import Authority
from tests.support.http_mocks import Heard, document, mock_server


async def test_connections_are_used_again_and_as_many_are_open_as_run_at_once() -> None:
    writers: list[asyncio.StreamWriter] = []

    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(document({"n": len(writers)}, x_a="b"))

    async with mock_server(answer) as mock:
        where = endpoint(mock.url)
        pool = ConnectionPool(where)
        for _ in range(3):
            found = await ask(pool, where, "/v1/completions", {})
        assert (found.json(), found.headers["x-a"]) == ({"n": 3}, "b")
        await asyncio.gather(*(ask(pool, where, "/v1/completions", {}) for _ in range(2)))
        await pool.close()
    assert len({id(writer) for writer in writers[:3]}) == 1
    assert len({id(writer) for writer in writers}) == 2


async def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async def answer_once(heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(document({}))
        await writer.drain()
        writer.close()

    async with mock_server(answer_once) as mock:
        where = endpoint(mock.url)
        pool = ConnectionPool(where)
        for _ in range(5):
            assert (await ask(pool, where, "/v1/completions", {})).status == 200
        await pool.close()


@pytest.mark.parametrize(
    ("reply", "words"),
    [(b"", "closed the connection"), (b"SSH-2.0-x\r\n\r\n", "no HTTP"), (b"HTTP/1.1 200 OK\r\n", "no complete answer")],
)
async def test_what_is_no_answer_is_an_error_within_its_bound(reply: bytes, words: str) -> None:
    async def answer(heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        if not reply:
            writer.close()

    async with mock_server(answer) as mock:
        where = endpoint(mock.url)
        pool = ConnectionPool(where)
        with pytest.raises(BatonError, match=words):
            await ask(pool, where, "/v1/completions", {}, timeout_s=0.3)
        await pool.close()


async def test_nobody_listens() -> None:
    async with mock_server() as mock:
        where = endpoint(mock.url)
    pool = ConnectionPool(where)
    with pytest.raises(BatonError, match="connect to"):
        await ask(pool, where, "/v1/models")
    await pool.close()


async def test_tls_trusts_the_authority_that_is_named_and_no_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server", dns="localhost")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(pair.cert, pair.key)
    async with mock_server(tls=served) as mock:
        for tls, is_trusted in ((trust(authority.cert, insecure=False), True), (trust(None, insecure=False), False)):
            where = endpoint(mock.url.replace("127.0.0.1", "localhost"), tls=tls)
            pool = ConnectionPool(where)
            if is_trusted:
                assert (await ask(pool, where, "/v1/models")).status == 200
            else:
                with pytest.raises(BatonError, match="CERTIFICATE_VERIFY_FAILED"):
                    await ask(pool, where, "/v1/models")
            await pool.close()
