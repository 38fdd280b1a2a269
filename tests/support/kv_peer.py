"""A peer of another make: speaks to a KV endpoint frame by frame, and so can break the rules of a hand-over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from core.cluster_token import token_metadata
from kv_transfer.frames import Kind, Offer, blocks_header, offer_frame, read_control, read_problem, transfer_seed
from kv_transfer.grpc_transport import SERVICE
from tests.support.kv_side import WAIT_S, Side

Call = grpc.aio.StreamStreamCall


@asynccontextmanager
async def push(side: Side, token: str = "secret") -> AsyncIterator[Call]:
    """Open a hand-over stream for a bounded time."""
    async with grpc.aio.insecure_channel(side.address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/Push")(metadata=token_metadata(token))
        try:
            async with asyncio.timeout(WAIT_S):
                yield call
        finally:
            call.cancel()


def offer(
    side: Side, transfer_id: str, num_blocks: int, *, attempt: int = 0, worker: str = "p", epoch: int = 1
) -> bytes:
    """Encode an offer that fits `side` in everything but, perhaps, its number of blocks."""
    io = side.endpoint.io
    fingerprint = side.endpoint.fingerprint
    return offer_frame(
        Offer(transfer_id, worker, epoch, fingerprint, "d", num_blocks, io.num_layers, io.block_bytes, attempt)
    )


def layer_frame(side: Side, transfer_id: str, layer: int, block_ids: list[int], *, first: int = 0) -> bytes:
    """Encode one layer of some blocks of `side`."""
    payload = memoryview(bytearray(len(block_ids) * side.endpoint.io.block_bytes))
    side.endpoint.io.gather_into(layer, block_ids, payload)
    return blocks_header(transfer_seed(transfer_id), layer, first, len(block_ids), payload) + payload


async def reply(call: Call) -> tuple[Kind, int]:
    """Read one reply: its kind and count."""
    message = await call.read()
    assert message is not grpc.aio.EOF
    header, _ = read_control(message)
    return header.kind, header.num_blocks


async def answer(call: Call) -> tuple[Kind, str]:
    """Read one reply: its kind and, for a refusal, why."""
    message = await call.read()
    assert message is not grpc.aio.EOF
    header, payload = read_control(message)
    return header.kind, read_problem(payload).error if payload else ""
