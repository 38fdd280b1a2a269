"""Hand-overs between two endpoints over real sockets, whole and broken in every way one side can break them."""

from __future__ import annotations

import random

import pytest
import torch

from core.errors import Unauthorized
from kv_transfer.control import KVControlClient
from kv_transfer.faults import SendFaults
from kv_transfer.frames import blocks_header, transfer_seed
from kv_transfer.staging import CHUNK_BYTES
from kv_transfer.ways import PeerTransports, host_identity
from tests.support.kv_side import BLOCKS, LAYERS, MakeSide, Side, wait_until


@pytest.fixture
def pair(make_side: MakeSide) -> tuple[Side, Side]:
    return make_side(seed=1), make_side(seed=2)


def assert_landed(prefill: Side, decode: Side, source: list[int], target: list[int]) -> None:
    for name, cache in prefill.cache.items():
        assert torch.equal(cache[source], decode.cache[name][target])


def test_offer_before_reservation(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    prefill.offer(decode.address, "t", 3)
    prefill.send_all("t", [5, 1, 9])
    wait_until(lambda: prefill.endpoint.sender.staged_bytes > 0)
    decode.expect("t", [2, 0, 7])
    decode.wait_finished("t")
    assert decode.bad == set()
    assert_landed(prefill, decode, [5, 1, 9], [2, 0, 7])


def test_reservation_before_offer_and_layer_by_layer(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0, 7])
    prefill.offer(decode.address, "t", 3)
    for layer in range(LAYERS):
        prefill.put("t", layer, 0, [5, 1])
    landed = LAYERS * 2 * prefill.endpoint.io.block_bytes
    wait_until(lambda: decode.endpoint.receiver.bytes_landed == landed)  # the first chunk, before the last is made
    decode.poll()
    assert not decode.finished
    wait_until(lambda: prefill.endpoint.sender.bytes_sent >= landed)  # this side knows it too
    for layer in range(LAYERS):
        prefill.put("t", layer, 2, [9])
    prefill.endpoint.sender.finish("t")
    decode.wait_finished("t")
    assert_landed(prefill, decode, [5, 1, 9], [2, 0, 7])
    wait_until(prefill.idle)
    overlap = prefill.endpoint.sender.overlap
    assert landed <= overlap.hidden_bytes <= overlap.num_bytes
    assert overlap.exposed_s > 0


def test_blocks_the_decode_side_has_are_not_overwritten(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    before = {name: cache.clone() for name, cache in decode.cache.items()}
    prefill.offer(decode.address, "t", 4)
    prefill.send_all("t", [5, 1, 9, 3])  # staged whole, before the grant says that two blocks are cached there
    decode.expect("t", [7, 8], first=2)
    decode.wait_finished("t")
    assert_landed(prefill, decode, [9, 3], [7, 8])
    assert (
        decode.endpoint.receiver.bytes_landed == LAYERS * 2 * prefill.endpoint.io.block_bytes
    )  # nothing more was sent
    untouched = [i for i in range(BLOCKS) if i not in (7, 8)]
    assert all(torch.equal(before[name][untouched], cache[untouched]) for name, cache in decode.cache.items())


def test_many_at_once_keep_apart(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    order = list(range(BLOCKS))
    random.Random(4).shuffle(order)
    for i in range(BLOCKS // 2):
        first, second = (decode.expect, prefill.offer) if i % 2 else (None, prefill.offer)
        if first:
            decode.expect(f"t{i}", order[2 * i : 2 * i + 2])
        second(decode.address, f"t{i}", 2)
        prefill.send_all(f"t{i}", [2 * i, 2 * i + 1])
        if not first:
            decode.expect(f"t{i}", order[2 * i : 2 * i + 2])
    decode.wait_finished(*(f"t{i}" for i in range(BLOCKS // 2)))
    assert decode.bad == set()
    assert_landed(prefill, decode, list(range(BLOCKS)), order)


def test_lost_layer_fails_only_what_is_missing(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0, 7])
    prefill.offer(decode.address, "t", 3)
    for layer in range(LAYERS):
        prefill.put("t", layer, 0, [5, 1])
    for layer in range(LAYERS - 1):
        prefill.put("t", layer, 2, [9])
    prefill.endpoint.sender.finish("t")
    decode.wait_finished("t")
    assert decode.bad == {7}
    assert_landed(prefill, decode, [5, 1], [2, 0])


def test_corrupt_frame_is_never_served(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    prefill.endpoint.stage("t", 0, 0, [5, 1], SendFaults(corrupt_layer=1))
    decode.wait_finished("t")
    assert decode.bad == {2, 0}
    prefill.endpoint.sender.finish("t")


def test_frame_of_another_transfer_is_never_served(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    sender, io = prefill.endpoint.sender, prefill.endpoint.io
    segment = sender.take("t", 2 * io.block_bytes)
    assert segment is not None
    io.gather_into(0, [5, 1], segment.view)
    header = blocks_header(transfer_seed("other"), 0, 0, 2, segment.view)
    sender.put("t", segment, layer=0, first_block=0, num_blocks=2, header=header)
    decode.wait_finished("t")
    assert decode.bad == {2, 0}


def test_frame_outside_the_reservation_is_refused(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    prefill.put("t", 0, 1, [5, 1])  # its second block is beyond the prompt
    decode.wait_finished("t")
    assert decode.bad == {2, 0}


@pytest.mark.parametrize("spoil", ["digest", "count"])
def test_unlike_prompts_are_not_paired(pair: tuple[Side, Side], spoil: str) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 3 if spoil == "count" else 2, digest="x" if spoil == "digest" else "d")
    decode.wait_finished("t")
    assert decode.bad == {2, 0}


def test_unlike_fingerprints_are_not_paired(make_side: MakeSide) -> None:
    prefill, decode = make_side(fingerprint="a"), make_side(fingerprint="b")
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    prefill.send_all("t", [5, 1])
    decode.wait_finished("t")
    assert decode.bad == {2, 0}


def test_lease_that_runs_out_is_recomputed(pair: tuple[Side, Side]) -> None:
    _, decode = pair
    decode.expect("t", [2, 0], lease_s=0.05)
    decode.wait_finished("t")
    assert decode.bad == {2, 0}
    assert decode.endpoint.ledger.blocks().expired == 2


def test_offer_after_its_lease_ran_out_is_refused(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0], lease_s=0.05)
    decode.wait_finished("t")
    before = decode.cache["layer.0"].clone()
    prefill.offer(decode.address, "t", 2)
    prefill.send_all("t", [5, 1])
    wait_until(lambda: prefill.endpoint.sender.counts["declined"] == 1)
    assert torch.equal(before, decode.cache["layer.0"])


def test_cancelled_request_is_reported_once_and_nothing_lands_after(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    prefill.put("t", 0, 0, [5, 1])
    wait_until(lambda: decode.endpoint.receiver.bytes_landed > 0)
    decode.endpoint.cancel_receive("t")
    decode.wait_finished("t")
    before = decode.cache["layer.1"].clone()
    prefill.put("t", 1, 0, [5, 1])
    wait_until(lambda: prefill.endpoint.sender.counts["failed"] == 1)
    assert decode.bad == set()
    assert torch.equal(before, decode.cache["layer.1"])


def test_prefill_that_gives_up_tells_decode_at_once(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0], lease_s=60)
    prefill.offer(decode.address, "t", 2, lease_s=60)
    prefill.put("t", 0, 0, [5])
    prefill.endpoint.sender.abort("t", "the prefill request ended early")
    decode.wait_finished("t")
    assert decode.bad == {2, 0}


def test_prefill_that_gives_up_before_decode_reserved(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    prefill.offer(decode.address, "t", 2, lease_s=60)
    prefill.send_all("t", [5, 1])
    wait_until(lambda: "t" in decode.endpoint.receiver._waiting)
    prefill.endpoint.sender.abort("t", "client gone")
    wait_until(prefill.idle)
    wait_until(lambda: "t" not in decode.endpoint.receiver._waiting)
    decode.expect("t", [2, 0], lease_s=60)
    decode.wait_finished("t")
    assert decode.bad == {2, 0}


def test_prefill_process_that_dies_is_noticed_at_once(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.expect("t", [2, 0], lease_s=60)
    prefill.offer(decode.address, "t", 2, lease_s=60)
    prefill.put("t", 0, 0, [5, 1])
    wait_until(lambda: decode.endpoint.receiver.bytes_landed > 0)
    prefill.endpoint.close()
    decode.wait_finished("t")
    assert decode.bad == {2, 0}


def test_decode_that_is_not_there_fails_fast(pair: tuple[Side, Side]) -> None:
    prefill, decode = pair
    decode.endpoint.close()
    prefill.offer(decode.address, "t", 2, lease_s=60)
    prefill.send_all("t", [5, 1])
    wait_until(lambda: prefill.endpoint.sender.counts["failed"] == 1)


def test_staging_is_bounded(make_side: MakeSide) -> None:
    prefill, decode = make_side(staging_bytes=3 * CHUNK_BYTES), make_side()
    prefill.offer(decode.address, "t", 8, lease_s=60)
    prefill.put("t", 0, 0, list(range(4)))
    prefill.put("t", 0, 4, list(range(4, 8)))
    prefill.send_all("t", list(range(8)))
    wait_until(prefill.idle)
    decode.expect("t", list(range(8)), lease_s=60)
    decode.wait_finished("t")
    assert decode.bad == set(range(8))


def test_wrong_token_is_refused_before_anything_is_read(make_side: MakeSide) -> None:
    prefill, decode = make_side(token="a"), make_side(token="b")
    decode.expect("t", [2, 0], lease_s=0.5)
    prefill.offer(decode.address, "t", 2)
    prefill.send_all("t", [5, 1])
    decode.wait_finished("t")
    assert decode.endpoint.receiver.bytes_landed == 0
    assert decode.bad == {2, 0}


async def test_control_cancel_and_stats(pair: tuple[Side, Side]) -> None:
    _, decode = pair
    client = KVControlClient(decode.address, "secret")
    try:
        decode.expect("t", [2, 0, 4], lease_s=60)
        assert await client.stats() | {"leases": None} == {
            "blocks": {"granted": 3, "held": 3, "released": 0, "expired": 0},
            "bytes": {"granted": 576, "held": 576, "released": 0, "expired": 0},
            "imbalance_blocks": 0,
            "imbalances": 0,
            "leases": None,
            "states": {"granted": 1, "transferring": 0, "landed": 0, "released": 0, "expired": 0},
            "receives": {"landed": 0, "failed": 0, "cancelled": 0},
            "sends": {"sent": 0, "declined": 0, "failed": 0},
            "resumed": 0,
            "mismatches": 0,
            "digests": 0,
            "quarantined": [],
            "bytes_sent": 0,
            "bytes_uncopied": 0,
            "bytes_landed": 0,
            "staged_bytes": 0,
            "cached_bytes": 0,
            "overlap": {"num_bytes": 0, "hidden_bytes": 0, "exposed_s": 0.0},
            "transports": {name: {"bytes": 0, "handovers": 0, "failures": 0} for name in ("shm", "tcp", "grpc")},
            "peers": {},
        }
        await client.cancel("t", "prefill worker lost")
        decode.wait_finished("t")
        assert decode.bad == {2, 0, 4}
    finally:
        await client.close()


async def test_control_says_which_transports_listen(pair: tuple[Side, Side]) -> None:
    client = KVControlClient(pair[1].address, "secret")
    try:
        told = PeerTransports.parse(await client.transports())
        assert (told.host, told.epoch, told.addresses["grpc"]) == (host_identity(), 1, pair[1].address)
        assert list(told.addresses) == ["shm", "tcp", "grpc"]
    finally:
        await client.close()


async def test_control_needs_the_token(pair: tuple[Side, Side]) -> None:
    client = KVControlClient(pair[1].address, "wrong")
    try:
        with pytest.raises(Unauthorized):
            await client.stats()
    finally:
        await client.close()
