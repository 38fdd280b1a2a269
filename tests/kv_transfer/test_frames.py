"""Wire format: what is encoded comes back, and whatever is changed on the way is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CorruptFrame
from kv_transfer.frames import (
    HEADER_BYTES,
    Kind,
    Offer,
    Problem,
    blocks_frame,
    control_frame,
    offer_frame,
    problem_frame,
    read_frames,
    read_offer,
    read_problem,
    transfer_seed,
    verify_blocks,
    without_first_blocks,
)

OFFER = Offer("t", "prefill-0", 3, "fp", "digest", num_blocks=4, num_layers=2, block_bytes=64)
rows = st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=5)


@given(rows, st.integers(0, 200), st.integers(0, 1000))
def test_blocks_round_trip(blocks: list[bytes], layer: int, first: int) -> None:
    seed = transfer_seed("t")
    message = blocks_frame(seed, layer, first, [memoryview(b) for b in blocks])
    (frame,) = read_frames(message)
    verify_blocks(frame, seed)
    assert (frame.kind, frame.layer, frame.first_block, frame.num_blocks) == (Kind.BLOCKS, layer, first, len(blocks))
    assert bytes(frame.payload) == b"".join(blocks)


@given(rows, st.data())
def test_any_flipped_payload_bit_is_noticed(blocks: list[bytes], data: st.DataObject) -> None:
    seed = transfer_seed("t")
    message = bytearray(blocks_frame(seed, 1, 2, [memoryview(b) for b in blocks]))
    where = data.draw(st.integers(HEADER_BYTES, len(message) - 1))
    message[where] ^= 1 << data.draw(st.integers(0, 7))
    (frame,) = read_frames(bytes(message))
    with pytest.raises(CorruptFrame):
        verify_blocks(frame, seed)


def test_frame_of_another_transfer_layer_or_place_is_noticed() -> None:
    block = [memoryview(bytes(8))]
    (frame,) = read_frames(blocks_frame(transfer_seed("a"), 0, 0, block))
    with pytest.raises(CorruptFrame):
        verify_blocks(frame, transfer_seed("b"))
    moved = bytearray(blocks_frame(transfer_seed("a"), 0, 0, block))
    moved[2] = 1  # the layer field
    (frame,) = read_frames(bytes(moved))
    with pytest.raises(CorruptFrame):
        verify_blocks(frame, transfer_seed("a"))


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_empty(message: bytes) -> None:
    try:
        frames = list(read_frames(message))
    except CorruptFrame:
        return
    assert sum(HEADER_BYTES + f.payload.nbytes for f in frames) == len(message)


@given(st.integers(1, 500))
def test_cut_message_is_refused(cut: int) -> None:
    message = offer_frame(OFFER) + problem_frame(Kind.ABORT, Problem("kv_expired", "x"))
    kept = message[: max(0, len(message) - cut)]
    whole = {0, len(offer_frame(OFFER)), len(message)}
    if len(kept) in whole:
        assert len(list(read_frames(kept))) == sorted(whole).index(len(kept))
    else:
        with pytest.raises(CorruptFrame):
            list(read_frames(kept))


@given(rows, st.data())
def test_frame_without_its_first_blocks_equals_one_made_so(blocks: list[bytes], data: st.DataObject) -> None:
    skipped = data.draw(st.integers(0, len(blocks) - 1))
    views = [memoryview(b) for b in blocks]
    whole = blocks_frame(transfer_seed("t"), 3, 10, views)
    rest = blocks_frame(transfer_seed("t"), 3, 10 + skipped, views[skipped:])
    assert without_first_blocks(whole, transfer_seed("t"), skipped) == rest


def test_control_frames_round_trip() -> None:
    offer, problem, end = read_frames(
        offer_frame(OFFER)
        + problem_frame(Kind.FAILED, Problem("kv_expired", "late"))
        + control_frame(Kind.END, count=7)
    )
    assert read_offer(offer) == OFFER
    assert read_problem(problem) == Problem("kv_expired", "late")
    assert (end.kind, end.num_blocks) == (Kind.END, 7)


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"transfer_id": "t"}', b"\xff"])
def test_malformed_offer_is_refused(payload: bytes) -> None:
    (frame,) = read_frames(control_frame(Kind.OFFER, payload))
    with pytest.raises(CorruptFrame):
        read_offer(frame)


def test_offer_with_wrong_types_is_refused() -> None:
    (good,) = read_frames(offer_frame(OFFER))
    spoiled = bytes(good.payload).replace(b'"num_blocks": 4', b'"num_blocks": "4"')
    (frame,) = read_frames(control_frame(Kind.OFFER, spoiled))
    with pytest.raises(CorruptFrame):
        read_offer(frame)
