"""TLS on the front: a real handshake, and what is not accepted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.tls_files import load_pair
from router.tls import server_context
from tests.support.certificates import Pair, make_pair

WAIT_S = 10.0


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path, "front")


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def greeting(port: int, client: ssl.SSLContext) -> tuple[bytes, str, str]:
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        said = await reader.read()
        tls = writer.get_extra_info("ssl_object")
        found = said, tls.version(), tls.selected_alpn_protocol()
        writer.close()
        return found


def context_of(pair: Pair) -> ssl.SSLContext:
    context = server_context(str(pair.cert), str(pair.key))
    assert context is not None
    return context


async def test_a_client_that_trusts_the_certificate_is_served(pair: Pair) -> None:
    client = ssl.create_default_context(cafile=str(pair.cert))
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(context_of(pair)) as port:
        assert await greeting(port, client) == (b"hello", "TLSv1.3", "http/1.1")
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await greeting(port, client))[:2] == (b"hello", "TLSv1.2")


async def test_old_versions_are_not_spoken(pair: Pair) -> None:
    assert context_of(pair).minimum_version == ssl.TLSVersion.TLSv1_2
    client = ssl.create_default_context(cafile=str(pair.cert))
    client.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        client.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(context_of(pair)) as port:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await greeting(port, client)


async def test_a_new_certificate_is_shown_to_new_connections(pair: Pair, tmp_path: Path) -> None:
    context = context_of(pair)
    renewed = make_pair(tmp_path, "renewed")
    client = ssl.create_default_context(cafile=str(renewed.cert))
    async with serving(context) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await greeting(port, client)
        load_pair(context, renewed.cert, renewed.key)
        assert (await greeting(port, client))[0] == b"hello"


def test_without_files_there_is_no_tls() -> None:
    assert server_context("", "") is None


def test_errors_name_their_key(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"router\.tls_cert: needs router\.tls_key beside it"):
        server_context(str(pair.cert), "")
    with pytest.raises(ConfigError, match=r"router\.tls_key: needs router\.tls_cert beside it"):
        server_context("", str(pair.key))
    with pytest.raises(ConfigError, match=r"router\.tls_key: there is no file"):
        server_context(str(pair.cert), str(tmp_path / "none"))
    other = make_pair(tmp_path, "other")
    with pytest.raises(ConfigError, match=r"router\.tls_key: .*is not the key of the certificate"):
        server_context(str(pair.cert), str(other.key))
    locked = make_pair(tmp_path, "locked", password=b"x")
    with pytest.raises(ConfigError, match=r"router\.tls_key: the key is encrypted"):
        server_context(str(locked.cert), str(locked.key))
