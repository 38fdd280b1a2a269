"""Groups of two under gloo: what is sent comes, who is left alone gives up in time, and what is lacking is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch

from core.errors import ConfigError, CorruptFrame, TransferAborted
from kv_transfer.communicator import Communicator, check_backend
from kv_transfer.link_store import LinkStore

WAIT_S = 30.0


def stores() -> list[LinkStore]:
    ends: list[LinkStore] = []

    def publish_to(other: int) -> Callable[[bytes], None]:
        return lambda message: ends[other].take(message)

    ends += [LinkStore(publish_to(1 - rank), timedelta(seconds=WAIT_S)) for rank in range(2)]
    return ends


async def joined(timeout_s: float = WAIT_S) -> list[Communicator]:
    groups = [Communicator(torch.device("cpu"), timeout_s) for _ in range(2)]
    each = zip(groups, stores(), strict=True)
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(group.join("gloo", s, rank, "127.0.0.1") for rank, (group, s) in enumerate(each)))
    return groups


async def test_host_memory_and_tensors_come_as_they_were_sent() -> None:
    receiver, sender = await joined()
    data = bytes(range(200))
    for payload in (memoryview(bytearray(data)), torch.frombuffer(bytearray(data), dtype=torch.uint8)):
        async with asyncio.timeout(WAIT_S):
            landed, _ = await asyncio.gather(
                receiver.receive(200, lambda tensor: tensor.numpy().tobytes()), sender.send(payload)
            )
        assert landed == data
    receiver.abort()
    sender.abort()


async def test_what_goes_wrong_with_a_landing_is_told_as_it_is() -> None:
    receiver, sender = await joined()

    def land(tensor: torch.Tensor) -> None:
        raise CorruptFrame("the sum is wrong")

    async with asyncio.timeout(WAIT_S):
        sending = asyncio.ensure_future(sender.send(memoryview(bytearray(8))))
        with pytest.raises(CorruptFrame, match="the sum is wrong"):
            await receiver.receive(8, land)
        await sending
    receiver.abort()
    sender.abort()


async def test_a_rank_that_nobody_meets_ends_with_its_store() -> None:
    store, _ = stores()
    group = Communicator(torch.device("cpu"), WAIT_S)
    joining = asyncio.ensure_future(group.join("gloo", store, 0, "127.0.0.1"))
    await asyncio.wait((joining,), timeout=0.05)
    group.abort()
    group.abort()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(TransferAborted):
            await joining
    with pytest.raises(TransferAborted):
        await group.receive(1, lambda tensor: None)


async def test_a_payload_that_does_not_come_runs_into_the_time_out() -> None:
    receiver, sender = await joined(timeout_s=0.2)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(TransferAborted):
            await receiver.receive(8, lambda tensor: None)
    receiver.abort()
    sender.abort()


@pytest.mark.parametrize(("device", "why"), [("cpu", "in cpu memory"), ("cuda:0", "without NCCL")])
def test_what_nccl_lacks_is_named_with_the_remedy(device: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"kv\.transport: nccl .*{why}.* set kv\.transport to auto"):
        check_backend("nccl", device)
    check_backend("gloo", device)
