"""What only an end-to-end digest finds, and what follows from it."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CorruptFrame, DigestMismatch
from kv_transfer.block_io import BlockIO
from kv_transfer.digest import ALWAYS, SendDigests, check_digest
from kv_transfer.faults import SendFaults
from kv_transfer.quarantine import MISMATCHES
from tests.support.kv_side import BLOCKS, LAYERS, SHAPE, MakeSide, Side, wait_until


def cache(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer.{i}": torch.randint(0, 255, (BLOCKS, *SHAPE), generator=generator, dtype=torch.uint8)
        for i in range(LAYERS)
    }


def hand_over(prefill: Side, decode: Side, name: str, *, faults: SendFaults | None = None) -> set[int]:
    """Hand three blocks over; return those that the decode engine has to compute."""
    decode.bad.clear()
    decode.expect(name, [2, 0, 7])
    prefill.offer(decode.address, name, 3)
    for layer in range(LAYERS):
        prefill.endpoint.stage(name, layer, 0, [5, 1, 9], faults)
    prefill.endpoint.sender.finish(name)
    decode.wait_finished(name)
    wait_until(prefill.idle)
    return set(decode.bad)


@given(
    data=st.data(),
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    spoilt=st.none() | st.tuples(st.integers(0, LAYERS - 1), st.integers(0, 63)),
)
async def test_equal_blocks_and_no_others_have_the_digest(
    data: st.DataObject, chunks: list[int], spoilt: tuple[int, int] | None
) -> None:
    num_blocks = sum(chunks)
    source, target = (data.draw(st.permutations(range(BLOCKS)))[:num_blocks] for _ in range(2))
    first = data.draw(st.integers(0, num_blocks - 1))
    sent, received = cache(1), cache(2)
    digests = SendDigests(BlockIO(sent), share=1.0)
    digests.begin("t", "peer", num_blocks)
    start = 0
    for count in chunks:
        for layer in range(LAYERS):
            digests.add("t", layer, start, source[start : start + count])
        start += count
    for name, tensor in received.items():
        tensor[target[first:]] = sent[name][source[first:]]
    if spoilt is not None:
        layer, byte = spoilt
        received[f"layer.{layer}"][target[-1]].view(-1)[byte] ^= 1
    checking = check_digest(BlockIO(received), digests.payload("t", first), first, target[first:])
    if spoilt is None:
        await checking
        return
    with pytest.raises(DigestMismatch):
        await checking


async def test_blocks_that_changed_places_are_found() -> None:
    tensors = cache()
    digests = SendDigests(BlockIO(tensors), share=1.0)
    digests.begin("t", "peer", 2)
    for layer in range(LAYERS):
        digests.add("t", layer, 0, [3, 4])
    with pytest.raises(DigestMismatch):
        await check_digest(BlockIO(tensors), digests.payload("t", 0), 0, [4, 3])
    with pytest.raises(CorruptFrame):
        await check_digest(BlockIO(tensors), b"short", 0, [3, 4])


def test_the_first_few_of_a_peer_and_a_share_of_the_rest_are_digested() -> None:
    digests = SendDigests(BlockIO(cache()), share=0.25, rng=random.Random(1))

    def chosen(name: str, *, landed: bool = True) -> bool:
        digests.begin(name, "peer", 1)
        was_chosen = bool(digests.payload(name, 0))
        digests.end(name, "peer", landed=landed)
        return was_chosen

    assert all(chosen(f"first-{i}") for i in range(ALWAYS))
    assert 60 < sum(chosen(f"later-{i}") for i in range(400)) < 140
    chosen("failed", landed=False)
    assert all(chosen(f"again-{i}") for i in range(ALWAYS))


def test_nothing_is_digested_with_a_share_of_0() -> None:
    digests = SendDigests(BlockIO(cache()), share=0.0)
    digests.begin("t", "peer", 1)
    digests.add("t", 0, 0, [1])
    assert digests.payload("t", 0) == b""


def test_zeros_with_right_checksums_are_recomputed(make_side: MakeSide) -> None:
    prefill, decode = make_side(seed=1, verify_share=1.0), make_side(seed=2)
    assert hand_over(prefill, decode, "t", faults=SendFaults(zero_blocks=1)) == {2, 0, 7}
    assert decode.endpoint.receiver.quarantine.mismatches == 1
    assert hand_over(prefill, decode, "u") == set()
    assert prefill.endpoint.digests.count == 2


@pytest.mark.parametrize("faults", [SendFaults(zero_blocks=1), SendFaults(corrupt_layer=2)], ids=["digest", "frame"])
def test_a_pair_with_wrong_kv_is_quarantined(make_side: MakeSide, faults: SendFaults) -> None:
    prefill, decode, other = make_side(seed=1, verify_share=1.0), make_side(seed=2), make_side(seed=3)
    for index in range(MISMATCHES):
        assert hand_over(prefill, decode, f"bad-{index}", faults=faults)
    assert hand_over(prefill, decode, "good") == {2, 0, 7}  # nothing of it is taken
    (left_out,) = decode.endpoint.receiver.quarantine.report()
    assert (left_out.worker_id, left_out.epoch) == ("p", 1)
    assert decode.endpoint.stats()["quarantined"]
    assert hand_over(prefill, other, "elsewhere") == set()
