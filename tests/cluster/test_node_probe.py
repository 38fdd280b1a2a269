"""Only nodes whose process says something count as there."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from cluster.node_probe import answering
from cluster.placement import Node

WITHIN_S = 20.0  # what answers does so at once, however busy the machine


def node(name: str, address: str) -> Node:
    return Node(name, "127.0.0.1", {}, {}, address)


@asynccontextmanager
async def grpc_server() -> AsyncIterator[str]:
    """Listen as Ray's processes do."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_a_process_that_speaks_grpc_answers() -> None:
    async with grpc_server() as address:
        nodes = (node("n1", address), node("n2", ""))
        assert await answering(nodes, environ={}, within_s=WITHIN_S) == nodes


async def test_a_process_that_is_gone_or_stopped_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as gone:
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, gone)]
        gone.close()
        nodes = [node(f"n{number}", address) for number, address in enumerate(addresses)]
        async with grpc_server() as address:
            alive = node("n2", address)
            assert await answering([*nodes, alive], environ={}, within_s=2.0) == (alive,)


async def test_with_tls_nobody_is_judged() -> None:
    nodes = (node("n1", "127.0.0.1:1"),)
    assert await answering(nodes, environ={"RAY_USE_TLS": "1"}) == nodes
