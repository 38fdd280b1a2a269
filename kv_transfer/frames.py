"""The wire format of a hand-over.

One hand-over is one bidirectional byte stream. A message holds one or more frames; a frame is a fixed header and a
payload:

    prefill -> decode:  OFFER  BLOCKS*  (END | ABORT)
    decode -> prefill:  (GRANT | REFUSED)  (LANDED | FAILED)

BLOCKS carries whole KV blocks of one layer, back to back. Its checksum is seeded by transfer id, layer and position,
so a frame that lands in the wrong transfer or place is as wrong as one with flipped bits.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import xxhash

from core.errors import CorruptFrame

# kind, version, layer, first block, number of blocks, payload bytes, checksum
_HEADER = struct.Struct("<BBHIIQQ")
HEADER_BYTES = _HEADER.size
VERSION = 1
MAX_PAYLOAD_BYTES = 1 << 30  # a frame that claims more is refused before anything is allocated
MAX_CONTROL_BYTES = 1 << 16  # of a frame without KV, likewise
MAX_ID_CHARS = 256  # of a transfer id: the receiving side remembers those that failed


class Kind(enum.IntEnum):
    """What a frame means."""

    OFFER = 1
    BLOCKS = 2
    END = 3
    ABORT = 4
    GRANT = 5
    REFUSED = 6
    LANDED = 7
    FAILED = 8


@dataclass(frozen=True, slots=True)
class Offer:
    """What the prefill side is about to send."""

    transfer_id: str
    worker_id: str
    epoch: int
    fingerprint: str  # equal on both sides, or the blocks mean different things
    prompt_digest: str  # digest of token ids and adapter: both legs must have rendered the same prompt
    num_blocks: int
    num_layers: int
    block_bytes: int  # of one layer


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a side ends a hand-over; `error` is the name of a core.errors class."""

    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame; `payload` views the message it came in."""

    kind: Kind
    layer: int
    first_block: int  # position in the request's block list, not a physical block id
    num_blocks: int
    checksum: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """What precedes the payload of a frame."""

    kind: Kind
    layer: int
    first_block: int  # position in the request's block list, not a physical block id
    num_blocks: int
    size: int  # of the payload, bytes
    checksum: int


def read_header(data: bytes | memoryview) -> Header:
    """Decode HEADER_BYTES bytes. Raises CorruptFrame for another version, an unknown kind or an impossible size."""
    kind, version, layer, first, count, size, checksum = _HEADER.unpack(data)
    if version != VERSION or kind not in Kind._value2member_map_:
        raise CorruptFrame(f"unknown frame (kind {kind}, version {version})")
    if size > (MAX_PAYLOAD_BYTES if kind == Kind.BLOCKS else MAX_CONTROL_BYTES):
        raise CorruptFrame(f"a {Kind(kind).name} frame claims {size} bytes")
    return Header(Kind(kind), layer, first, count, size, checksum)


def transfer_seed(transfer_id: str) -> int:
    """Derive the checksum seed of one hand-over."""
    return int(xxhash.xxh3_64_intdigest(transfer_id.encode()))


def _checksum(seed: int, layer: int, first_block: int, chunks: Sequence[bytes | memoryview]) -> int:
    digest = xxhash.xxh3_64(seed=(seed ^ (layer << 32) ^ first_block) & 0xFFFF_FFFF_FFFF_FFFF)
    for chunk in chunks:
        digest.update(chunk)
    return int(digest.intdigest())


def blocks_frame(seed: int, layer: int, first_block: int, rows: Sequence[memoryview]) -> bytes:
    """Encode blocks of one layer; each row is one whole block. The bytes are copied once."""
    size = sum(row.nbytes for row in rows)
    header = _HEADER.pack(
        Kind.BLOCKS, VERSION, layer, first_block, len(rows), size, _checksum(seed, layer, first_block, rows)
    )
    return b"".join((header, *rows))


def without_first_blocks(frame: bytes, seed: int, count: int) -> bytes:
    """Encode a BLOCKS frame again without its first `count` blocks."""
    _, _, layer, first_block, num_blocks, size, _ = _HEADER.unpack_from(frame)
    rows = memoryview(frame)[HEADER_BYTES + size // num_blocks * count :]
    kept_size = len(rows)
    checksum = _checksum(seed, layer, first_block + count, (rows,))
    header = _HEADER.pack(Kind.BLOCKS, VERSION, layer, first_block + count, num_blocks - count, kept_size, checksum)
    return b"".join((header, rows))


def control_frame(kind: Kind, payload: bytes = b"", *, first_block: int = 0, count: int = 0) -> bytes:
    """Encode a frame without KV; END carries the number of BLOCKS frames in `count`."""
    checksum = _checksum(0, 0, first_block, (payload,))
    return _HEADER.pack(kind, VERSION, 0, first_block, count, len(payload), checksum) + payload


def offer_frame(offer: Offer) -> bytes:
    """Encode an offer."""
    return control_frame(Kind.OFFER, json.dumps(asdict(offer)).encode())


def problem_frame(kind: Kind, problem: Problem) -> bytes:
    """Encode why a hand-over ends (ABORT, REFUSED or FAILED)."""
    return control_frame(kind, json.dumps(asdict(problem)).encode())


def read_frames(message: bytes) -> Iterator[Frame]:
    """Decode the frames of one message, checking lengths but not the checksum of BLOCKS (see `verify_blocks`).

    Raises CorruptFrame when the message is cut, of another version, or claims more than it holds.
    """
    view = memoryview(message)
    offset = 0
    while offset < len(view):
        if len(view) - offset < HEADER_BYTES:
            raise CorruptFrame("a frame header is cut")
        kind, version, layer, first, count, size, checksum = _HEADER.unpack_from(view, offset)
        offset += HEADER_BYTES
        if version != VERSION or kind not in Kind._value2member_map_:
            raise CorruptFrame(f"unknown frame (kind {kind}, version {version})")
        if size > min(MAX_PAYLOAD_BYTES, len(view) - offset):
            raise CorruptFrame("a frame claims more bytes than the message holds")
        payload = view[offset : offset + size]
        offset += size
        frame = Frame(Kind(kind), layer, first, count, checksum, payload)
        if frame.kind is not Kind.BLOCKS and _checksum(0, 0, first, (payload,)) != checksum:
            raise CorruptFrame(f"checksum of a {frame.kind.name} frame does not match")
        yield frame


def verify_blocks(frame: Frame, seed: int) -> None:
    """Check the checksum of a BLOCKS frame. Raises CorruptFrame."""
    if _checksum(seed, frame.layer, frame.first_block, (frame.payload,)) != frame.checksum:
        raise CorruptFrame(f"checksum of layer {frame.layer}, block {frame.first_block} does not match")


def read_offer(frame: Frame) -> Offer:
    """Decode an offer. Raises CorruptFrame when a field is missing or of the wrong type."""
    if frame.kind is not Kind.OFFER:
        raise CorruptFrame(f"expected an offer, got {frame.kind.name}")
    try:
        offer = Offer(**json.loads(bytes(frame.payload)))
    except (ValueError, TypeError, RecursionError) as exc:
        raise CorruptFrame("the offer is malformed") from exc
    for name, kind in (("num_blocks", int), ("num_layers", int), ("block_bytes", int), ("transfer_id", str)):
        if not isinstance(getattr(offer, name), kind):
            raise CorruptFrame(f"the offer's {name} is malformed")
    if len(offer.transfer_id) > MAX_ID_CHARS:
        raise CorruptFrame(f"the offer's transfer_id has more than {MAX_ID_CHARS} characters")
    return offer


def read_problem(frame: Frame) -> Problem:
    """Decode why a hand-over ended."""
    try:
        return Problem(**json.loads(bytes(frame.payload)))
    except (ValueError, TypeError, RecursionError) as exc:
        raise CorruptFrame("a problem report is malformed") from exc
