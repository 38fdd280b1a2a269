"""KV ports with certificates: hand-over and control calls among components of one authority, nothing for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.component_tls import ComponentTLS
from core.errors import ConfigError, TransferAborted, Unauthorized
from kv_transfer.control import KVControlClient
from kv_transfer.frames import Kind, control_frame
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.transport import Incoming
from tests.support.certificates import Authority

HOST = "127.0.0.1"
WAIT_S = 20.0
BLOCKS = control_frame(Kind.ABORT, b"blocks")


class Port:
    """A KV port that echoes, and remembers whether anything reached it."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.address = ""

    async def echo(self, incoming: Incoming) -> None:
        header = await incoming.header()
        self.reached.append("stream")
        await incoming.write(control_frame(header.kind, await incoming.payload(header)))

    async def control(self, verb: str, arguments: dict[str, str]) -> dict[str, object]:
        self.reached.append(verb)
        return {"verb": verb}


@asynccontextmanager
async def serving(tls: ComponentTLS | None) -> AsyncIterator[Port]:
    port = Port()
    server = GrpcTransport(port.control, token="secret", tls=tls)
    port.address = await server.listen(HOST, port.echo)
    try:
        async with asyncio.timeout(3 * WAIT_S):
            yield port
    finally:
        await server.close()


async def ask(port: Port, tls: ComponentTLS | None, token: str = "secret") -> dict[str, object]:
    client = KVControlClient(port.address, token, tls=tls, timeout_s=WAIT_S)
    try:
        return await client.stats()
    finally:
        await client.close()


async def echoed(port: Port, tls: ComponentTLS | None) -> bytes:
    transport = GrpcTransport(Port().control, token="secret", tls=tls)
    try:
        stream = await transport.connect(port.address, WAIT_S)
        try:
            await stream.write(BLOCKS)
            return await stream.read()
        finally:
            stream.close()
    finally:
        await transport.close()


async def test_components_of_one_authority_hand_over(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(authority.component("decode")) as port:
        assert await ask(port, authority.component("worker")) == {"verb": "stats"}
        assert await echoed(port, authority.component("prefill")) == BLOCKS
        with pytest.raises(Unauthorized):
            await ask(port, authority.component("guest"), token="guess")


async def test_others_reach_nothing(tmp_path: Path) -> None:
    tls, stranger = Authority(tmp_path).component("decode"), Authority(tmp_path, "other").component("stranger")
    async with serving(tls) as port:
        for broken in (stranger, replace(stranger, ca=tls.ca), replace(tls, name="west"), None):
            with pytest.raises(TransferAborted, match="UNAVAILABLE"):
                await ask(port, broken)
            with pytest.raises(TransferAborted):
                await echoed(port, broken)
        assert port.reached == []
    async with serving(None) as port:
        with pytest.raises(TransferAborted, match="UNAVAILABLE"):
            await ask(port, tls)
        assert port.reached == []


async def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = replace(authority.component("decode"), key=str(authority.issue("other").key))
    with pytest.raises(ConfigError, match=r"security\.key: .* is not the key"):
        await GrpcTransport(Port().control, token="", tls=tls).listen(HOST, Port().echo)
