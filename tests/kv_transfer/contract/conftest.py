"""What is shared by all tests of a process: gRPC's own descriptors, which it opens once and keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from grpc._cython import cygrpc

from kv_transfer.frames import Kind, control_frame
from kv_transfer.staging import StagingPool
from tests.kv_transfer.contract.transports import TRANSPORTS, Ends


@pytest.fixture(scope="session", autouse=True)
def grpc_is_in_use() -> Iterator[None]:
    """Have gRPC open them before any test counts descriptors, and keep them to the end."""
    asyncio.run(_use_grpc())
    yield
    cygrpc.shutdown_grpc_aio()


async def _use_grpc() -> None:
    cygrpc.init_grpc_aio()  # in a loop: outside there is none any more when an async test has run before
    pool = StagingPool(1 << 20)
    both = Ends(TRANSPORTS["grpc"], pool)
    try:
        await both.start()
        outgoing, _ = await both.open()
        await outgoing.write(control_frame(Kind.OFFER))
    finally:
        await both.close()
        pool.close()
