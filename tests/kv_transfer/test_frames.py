"""Wire format: what is encoded comes back, and whatever is changed on the way is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CorruptFrame
from kv_transfer.frames import (
    HEADER_BYTES,
    MAX_CONTROL_BYTES,
    Kind,
    Offer,
    Problem,
    blocks_header,
    control_frame,
    offer_frame,
    problem_frame,
    read_control,
    read_header,
    read_offer,
    read_problem,
    transfer_seed,
    verify_blocks,
)

OFFER = Offer("t", "prefill-0", 3, "fp", "digest", num_blocks=4, num_layers=2, block_bytes=64, attempt=1)
rows = st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=5)


@given(rows, st.integers(0, 200), st.integers(0, 1000))
def test_blocks_round_trip(blocks: list[bytes], layer: int, first: int) -> None:
    seed = transfer_seed("t")
    header = read_header(blocks_header(seed, layer, first, len(blocks), memoryview(b"".join(blocks))))
    verify_blocks(header, seed, [memoryview(b) for b in blocks])
    assert (header.kind, header.layer, header.first_block, header.num_blocks, header.size) == (
        Kind.BLOCKS,
        layer,
        first,
        len(blocks),
        8 * len(blocks),
    )


@given(rows, st.data())
def test_any_flipped_payload_bit_is_noticed(blocks: list[bytes], data: st.DataObject) -> None:
    seed = transfer_seed("t")
    payload = bytearray(b"".join(blocks))
    header = read_header(blocks_header(seed, 1, 2, len(blocks), memoryview(payload)))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptFrame):
        verify_blocks(header, seed, [memoryview(payload)])


def test_frame_of_another_transfer_layer_or_place_is_noticed() -> None:
    block = memoryview(bytes(8))
    encoded = blocks_header(transfer_seed("a"), 0, 0, 1, block)
    with pytest.raises(CorruptFrame):
        verify_blocks(read_header(encoded), transfer_seed("b"), [block])
    for field in (2, 4, 8):  # the layer, the first block, the number of blocks
        moved = bytearray(encoded)
        moved[field] ^= 2
        with pytest.raises(CorruptFrame):
            verify_blocks(read_header(bytes(moved)), transfer_seed("a"), [block])


@given(st.binary(max_size=200))
def test_garbage_is_refused(message: bytes) -> None:
    with pytest.raises(CorruptFrame):
        read_control(message)


@given(st.integers(1, 500))
def test_cut_message_is_refused(cut: int) -> None:
    message = offer_frame(OFFER)
    with pytest.raises(CorruptFrame):
        read_control(message[: max(0, len(message) - cut)])


@given(st.data())
def test_any_flipped_bit_of_a_count_or_payload_is_noticed(data: st.DataObject) -> None:
    message = bytearray(control_frame(Kind.ACK, b"payload", first_block=3, count=9))
    message[data.draw(st.integers(4, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptFrame):
        read_control(bytes(message))


def test_control_frames_round_trip() -> None:
    _, offer = read_control(offer_frame(OFFER))
    assert read_offer(offer) == OFFER
    failed, problem = read_control(problem_frame(Kind.FAILED, Problem("kv_expired", "late")))
    assert (failed.kind, read_problem(problem)) == (Kind.FAILED, Problem("kv_expired", "late"))
    grant, payload = read_control(control_frame(Kind.GRANT, first_block=2, count=7))
    assert (grant.kind, grant.first_block, grant.num_blocks, payload) == (Kind.GRANT, 2, 7, b"")


def test_control_frame_that_claims_too_much_is_refused_by_its_header() -> None:
    header = control_frame(Kind.OFFER, bytes(MAX_CONTROL_BYTES + 1))[:HEADER_BYTES]
    with pytest.raises(CorruptFrame, match="claims"):
        read_header(header)


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"transfer_id": "t"}', b"\xff"])
def test_malformed_offer_is_refused(payload: bytes) -> None:
    with pytest.raises(CorruptFrame):
        read_offer(payload)


@pytest.mark.parametrize(
    ("good", "bad"),
    [(b'"num_blocks": 4', b'"num_blocks": "4"'), (b'"epoch": 3', b'"epoch": true'), (b'"prefill-0"', b"7")],
)
def test_offer_with_wrong_types_is_refused(good: bytes, bad: bytes) -> None:
    _, payload = read_control(offer_frame(OFFER))
    assert good in payload
    with pytest.raises(CorruptFrame):
        read_offer(payload.replace(good, bad))
