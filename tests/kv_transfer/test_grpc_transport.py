"""Calls that no Baton makes, and streams that have ended."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc

from core.cluster_token import token_metadata
from core.errors import KVTransferError, TransferAborted
from kv_transfer.frames import Kind, read_control
from kv_transfer.grpc_transport import SERVICE, GrpcTransport, control_request
from tests.support.kv_peer import push
from tests.support.kv_side import WAIT_S, MakeSide


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"verb": "cancel"}',
        b'{"verb": "cancel", "transfer_id": [1], "reason": "x"}',
        b'{"verb": "x"}',
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "list", "object", "bare", "typed", "unknown", "deep"],
)
async def test_malformed_control_call_is_refused(make_side: MakeSide, request_bytes: bytes) -> None:
    decode = make_side()
    async with grpc.aio.insecure_channel(decode.address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Control")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(request_bytes, metadata=token_metadata("secret"), timeout=WAIT_S)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call(control_request("stats", {}), metadata=token_metadata("secret"), timeout=WAIT_S)


async def test_peer_without_the_token_is_turned_away(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2])
    async with push(decode, token="") as call:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    decode.endpoint.cancel_receive("t")
    await asyncio.to_thread(decode.wait_finished, "t")


async def test_write_to_a_stream_that_has_ended_is_a_transfer_error(make_side: MakeSide) -> None:
    decode = make_side()
    transport = GrpcTransport(_no_verb, token="secret")
    try:
        stream = await transport.connect(decode.address, WAIT_S)
        await stream.write(b"no frame")
        assert read_control(await stream.read())[0].kind is Kind.REFUSED
        with pytest.raises(KVTransferError):
            await stream.read()
        with pytest.raises(TransferAborted):
            await stream.write(b"x")
    finally:
        await transport.close()


async def _no_verb(verb: str, arguments: dict[str, str]) -> dict[str, object]:
    raise ValueError(verb)


async def test_peer_that_leaves_with_its_answer_is_no_error(
    make_side: MakeSide, caplog: pytest.LogCaptureFixture
) -> None:
    """One in a few thousand such departures meets the status on its way, which gRPC reports with a traceback."""
    decode = make_side()
    async with grpc.aio.insecure_channel(decode.address) as channel:
        open_stream = channel.stream_stream(f"/{SERVICE}/Push")
        for _ in range(200):
            call = open_stream(metadata=token_metadata("secret"))
            async with asyncio.timeout(WAIT_S):
                await call.write(b"garbage")
                await call.read()
            call.cancel()
    late = cygrpc.ExecuteBatchError("SendStatusFromServerOperation")
    cygrpc_log = logging.getLogger(cygrpc.__name__)
    cygrpc_log.error("raised in core by servicer method", exc_info=late)
    assert caplog.records == [r for r in caplog.records if r.levelno < logging.ERROR]
    cygrpc_log.error("something else", exc_info=ValueError("x"))
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == ["something else"]
    caplog.clear()  # of what no_errors_logged would find
