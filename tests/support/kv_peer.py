"""A peer of another make: speaks to a KV endpoint frame by frame, and so can break the rules of a hand-over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from core.cluster_token import token_metadata
from kv_transfer.frames import Kind, Offer, blocks_frame, offer_frame, read_frames, read_problem, transfer_seed
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


def offer(side: Side, transfer_id: str, num_blocks: int) -> bytes:
    """Encode an offer that fits `side` in everything but, perhaps, its number of blocks."""
    io = side.endpoint.io
    fingerprint = side.endpoint.fingerprint
    return offer_frame(Offer(transfer_id, "p", 1, fingerprint, "d", num_blocks, io.num_layers, io.block_bytes))


def layer_frame(side: Side, transfer_id: str, layer: int, block_ids: list[int]) -> bytes:
    """Encode one layer of some blocks of `side`."""
    return blocks_frame(transfer_seed(transfer_id), layer, 0, side.endpoint.io.gather(layer, block_ids))


async def answer(call: Call) -> tuple[Kind, str]:
    """Read one reply: its kind and, for a refusal, why."""
    message = await call.read()
    assert message is not grpc.aio.EOF
    (frame,) = read_frames(message)
    return frame.kind, "" if frame.kind in (Kind.GRANT, Kind.LANDED) else read_problem(frame).error
