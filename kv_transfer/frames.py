"""The wire format of a hand-over.

One hand-over is one bidirectional stream of frames at a time; a frame is a fixed header and a payload:

    prefill -> decode:  OFFER  BLOCKS*  (END | ABORT)
    decode -> prefill:  (GRANT | REFUSED | LANDED)  ACK*  (LANDED | FAILED)

BLOCKS carries whole KV blocks of one layer, back to back, or the same blocks of several layers in a row, one layer
after the other. Its checksum is that of the payload, hashed once more with transfer id, layer, position and number of
blocks: a frame that lands in the wrong transfer or place is as wrong as one with flipped bits, and a payload can be
hashed piece by piece while it is copied, before anybody has to know where it goes. The order of a hand-over's
BLOCKS is fixed, so a count of them says where another stream has to go on: ACK and GRANT carry how many have landed in
all streams so far, END how many there are. LANDED answers an offer when nothing of it is missing any more.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import xxhash

from core.errors import CorruptFrame

# kind, version, layer, first block, number of blocks, payload bytes, checksum
_HEADER = struct.Struct("<BBHIIQQ")
HEADER_BYTES = _HEADER.size
# checksum of the payload, seed of the transfer, layer, first block, number of blocks
_PLACE = struct.Struct("<QQIII")
VERSION = 3
MAX_PAYLOAD_BYTES = 1 << 30  # a frame that claims more is refused before anything is allocated
MAX_CONTROL_BYTES = 1 << 16  # of a frame without KV, likewise
Digest = xxhash.xxh3_64  # of a payload: fed in order, in pieces of any size
MAX_ID_CHARS = 256  # of a transfer or worker id: the receiving side remembers them


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
    ACK = 9


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
    attempt: int = 0  # streams tried before for the same hand-over

    @property
    def num_bytes(self) -> int:
        """All layers of all blocks."""
        return self.num_blocks * self.num_layers * self.block_bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a side ends a hand-over; `error` is the name of a core.errors class."""

    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Header:
    """What precedes the payload of a frame."""

    kind: Kind
    layer: int  # the first, of several
    first_block: int  # position in the request's block list, not a physical block id
    num_blocks: int  # of a frame without KV: its count
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


def place_of(seed: int, layer: int, first_block: int) -> int:
    """Name where a frame of one layer belongs in 64 bits: its transfer's seed, layer and position.

    It is its own inverse: with a place for `seed` it returns the seed.
    """
    return (seed ^ (layer << 32) ^ first_block) & 0xFFFF_FFFF_FFFF_FFFF


def _checksum(digest: int, *, seed: int = 0, layer: int = 0, first_block: int, num_blocks: int) -> int:
    """Tie the checksum of a payload to its place."""
    return int(xxhash.xxh3_64_intdigest(_PLACE.pack(digest, seed, layer, first_block, num_blocks)))


def _digest_of(chunks: Sequence[bytes | memoryview]) -> int:
    digest = Digest()
    for chunk in chunks:
        digest.update(chunk)
    return int(digest.intdigest())


def blocks_header(
    seed: int, layer: int, first_block: int, num_blocks: int, payload: memoryview, *, digest: int | None = None
) -> bytes:
    """Encode what precedes `num_blocks` blocks of one layer or more; `digest` is the payload's where it is known."""
    digest = _digest_of((payload,)) if digest is None else digest
    return digested_header(seed, layer, first_block, num_blocks, size=payload.nbytes, digest=digest)


def digested_header(seed: int, layer: int, first_block: int, num_blocks: int, *, size: int, digest: int) -> bytes:
    """Encode what precedes `size` bytes of blocks whose digest is known."""
    checksum = _checksum(digest, seed=seed, layer=layer, first_block=first_block, num_blocks=num_blocks)
    return _HEADER.pack(Kind.BLOCKS, VERSION, layer, first_block, num_blocks, size, checksum)


def place_header(layer: int, first_block: int, num_blocks: int, size: int) -> bytes:
    """Encode what precedes blocks whose sum travels behind them, from device to device."""
    return _HEADER.pack(Kind.BLOCKS, VERSION, layer, first_block, num_blocks, size, 0)


def seal_header(header: bytes, place: int, payload: memoryview) -> bytes:
    """Put the checksum of a payload into a header that `place_header` made; `place` is `place_of` the frame."""
    head = read_header(header)
    seed = place_of(place, head.layer, head.first_block)
    return blocks_header(seed, head.layer, head.first_block, head.num_blocks, payload)


def verify_blocks(header: Header, seed: int, rows: Sequence[memoryview], *, digest: int | None = None) -> None:
    """Check what a BLOCKS frame landed: its rows, or their `digest` where it is known. Raises CorruptFrame."""
    digest = _digest_of(rows) if digest is None else digest
    layer, first_block, num_blocks = header.layer, header.first_block, header.num_blocks
    checksum = _checksum(digest, seed=seed, layer=layer, first_block=first_block, num_blocks=num_blocks)
    if checksum != header.checksum:
        raise CorruptFrame(f"checksum of layer {header.layer}, block {header.first_block} does not match")


def control_frame(kind: Kind, payload: bytes = b"", *, first_block: int = 0, count: int = 0) -> bytes:
    """Encode a frame without KV; END, ACK and GRANT carry a number of BLOCKS frames in `count`."""
    checksum = _checksum(_digest_of((payload,)), first_block=first_block, num_blocks=count)
    return _HEADER.pack(kind, VERSION, 0, first_block, count, len(payload), checksum) + payload


def offer_frame(offer: Offer) -> bytes:
    """Encode an offer."""
    return control_frame(Kind.OFFER, json.dumps(asdict(offer)).encode())


def problem_frame(kind: Kind, problem: Problem) -> bytes:
    """Encode why a hand-over ends (ABORT, REFUSED or FAILED)."""
    return control_frame(kind, json.dumps(asdict(problem)).encode())


def verify_control(header: Header, payload: bytes) -> None:
    """Check the checksum of a frame without KV. Raises CorruptFrame."""
    checksum = _checksum(_digest_of((payload,)), first_block=header.first_block, num_blocks=header.num_blocks)
    if checksum != header.checksum:
        raise CorruptFrame(f"checksum of a {header.kind.name} frame does not match")


def read_control(message: bytes) -> tuple[Header, bytes]:
    """Decode one whole frame without KV: header and payload. Raises CorruptFrame."""
    if len(message) < HEADER_BYTES:
        raise CorruptFrame("a frame header is cut")
    header, payload = read_header(message[:HEADER_BYTES]), message[HEADER_BYTES:]
    if header.kind is Kind.BLOCKS or header.size != len(payload):
        raise CorruptFrame(f"a {header.kind.name} frame of {header.size} bytes came in {len(payload)}")
    verify_control(header, payload)
    return header, payload


def read_offer(payload: bytes) -> Offer:
    """Decode the payload of an offer. Raises CorruptFrame when a field is missing or of the wrong type."""
    try:
        offer = Offer(**json.loads(payload))
    except (ValueError, TypeError, RecursionError) as exc:
        raise CorruptFrame("the offer is malformed") from exc
    for field in fields(Offer):
        kind = int if field.type == "int" else str
        if type(getattr(offer, field.name)) is not kind:
            raise CorruptFrame(f"the offer's {field.name} is malformed")
    for name in ("transfer_id", "worker_id"):
        if len(getattr(offer, name)) > MAX_ID_CHARS:
            raise CorruptFrame(f"the offer's {name} has more than {MAX_ID_CHARS} characters")
    return offer


def read_problem(payload: bytes) -> Problem:
    """Decode why a hand-over ended. Raises CorruptFrame."""
    try:
        return Problem(**json.loads(payload))
    except (ValueError, TypeError, RecursionError) as exc:
        raise CorruptFrame("a problem report is malformed") from exc
