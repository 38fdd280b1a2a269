"""Hand-overs between endpoints whose caches are reached by their device alone.

Over the collective transport (gloo in NCCL's place) no byte passes the host; over another transport, or when the
collective one breaks, frames are copied to the host as they leave. The cache here is a CPU's, the code is a GPU's.
"""

from __future__ import annotations

import pytest
import torch

from kv_transfer.collective_transport import CollectiveIncoming
from kv_transfer.device_blocks import DeviceBlocks
from kv_transfer.frames import place_header, place_of, transfer_seed, verify_blocks
from kv_transfer.host_copies import HostCopies
from kv_transfer.transport import StagedFrame
from tests.kv_transfer.contract.transports import TRANSPORTS, Case, ends
from tests.support.kv_side import BLOCKS, MakeSide, Side, wait_until


def pair(make_side: MakeSide, transport: str) -> tuple[Side, Side]:
    return tuple(make_side(seed=seed, transport=transport, by_device=True) for seed in (1, 2))  # type: ignore[return-value]


def assert_landed(prefill: Side, decode: Side, source: list[int], target: list[int]) -> None:
    for name, cache in prefill.cache.items():
        assert torch.equal(cache[source], decode.cache[name][target])


def hand_over(prefill: Side, decode: Side, transfer_id: str, source: list[int], target: list[int]) -> None:
    decode.expect(transfer_id, target)
    prefill.offer(decode.address, transfer_id, len(source))
    prefill.send_all(transfer_id, source)
    decode.wait_finished(transfer_id)
    assert decode.bad == set()
    assert_landed(prefill, decode, source, target)
    wait_until(prefill.idle)


def test_device_to_device_without_the_host(make_side: MakeSide, monkeypatch: pytest.MonkeyPatch) -> None:
    async def land(self: CollectiveIncoming, *_: object) -> None:
        raise AssertionError("it went by the host")

    monkeypatch.setattr(CollectiveIncoming, "land", land)
    prefill, decode = pair(make_side, "gloo")
    for index in range(3):
        hand_over(prefill, decode, f"t{index}", [5, 1, 9 + index], [2, 0, 7 + index])
    counts = prefill.endpoint.stats()["transports"]
    assert isinstance(counts, dict)
    assert counts["gloo"]["handovers"] == 3
    assert counts["grpc"]["handovers"] == 0


def test_blocks_the_decode_side_has_are_left_out(make_side: MakeSide) -> None:
    prefill, decode = pair(make_side, "gloo")
    before = {name: cache.clone() for name, cache in decode.cache.items()}
    prefill.offer(decode.address, "t", 4)
    prefill.send_all("t", [5, 1, 9, 3])  # gathered whole, before the grant
    decode.expect("t", [7, 8], first=2)
    decode.wait_finished("t")
    assert decode.bad == set()
    assert_landed(prefill, decode, [9, 3], [7, 8])
    untouched = [i for i in range(BLOCKS) if i not in (7, 8)]
    assert all(torch.equal(before[name][untouched], cache[untouched]) for name, cache in decode.cache.items())


def test_a_frame_that_the_device_finds_corrupt_is_recomputed(
    make_side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = pair(make_side, "gloo")
    gather = DeviceBlocks.gather

    def spoilt(self: DeviceBlocks, layer: int, block_ids: list[int], place: int) -> object:
        buffer = gather(self, layer, block_ids, place)
        buffer.tensor[3] ^= layer == 1
        return buffer

    monkeypatch.setattr(DeviceBlocks, "gather", spoilt)
    before = decode.cache["layer.1"].clone()
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    prefill.send_all("t", [5, 1])
    decode.wait_finished("t")
    assert decode.bad == {2, 0}
    assert torch.equal(decode.cache["layer.1"], before)


def test_when_the_collective_transport_breaks_the_host_carries_the_rest(
    make_side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = pair(make_side, "gloo")
    land = CollectiveIncoming.land_on_device
    landed: list[int] = []

    async def broken(self: CollectiveIncoming, header: object, scatter: object) -> None:
        if landed:
            self._lane.give_up()
        await land(self, header, scatter)  # type: ignore[arg-type]
        landed.append(1)

    monkeypatch.setattr(CollectiveIncoming, "land_on_device", broken)
    hand_over(prefill, decode, "t", [5, 1, 9], [2, 0, 7])
    assert landed == [1]
    assert prefill.endpoint.sender.resumed == 1


@pytest.mark.parametrize("name", ["shm", "tcp"])
async def test_a_transport_of_host_memory_gets_a_copy_with_its_checksum(name: str) -> None:
    rows = [torch.arange(256, dtype=torch.uint8).view(4, 64)]
    blocks, seed = DeviceBlocks(rows), transfer_seed("t")
    case = TRANSPORTS[name]
    async with ends(Case(lambda token, pool: HostCopies(case.make(token, pool)), case.dial)) as both:
        outgoing, incoming = await both.open()
        segment = both.pool.take(128)
        assert segment is not None
        buffer = blocks.gather(0, [3, 1], place_of(seed, 5, 9))
        await outgoing.write_blocks([StagedFrame(place_header(5, 9, 2, 128), segment.view, segment.offset, buffer)])
        header, landed = await incoming.header(), bytearray(128)
        await incoming.land(header, [memoryview(landed)])
        assert bytes(landed) == rows[0][[3, 1]].numpy().tobytes()
        verify_blocks(header, seed, [memoryview(landed)])
