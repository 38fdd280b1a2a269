"""The decode side: expected hand-overs, the bytes that land, and what becomes of each.

All state changes happen on the KV thread's event loop; the engine thread only posts commands and takes results. A
hand-over ends exactly once: landed, failed (the engine recomputes what is missing) or cancelled. Blocks are reported
to the engine only after the last byte was written, so no block is freed under a running write.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from core.errors import (
    CorruptFrame,
    KVExpired,
    KVTransferError,
    PeerMismatch,
    TransferAborted,
    TransferTimeout,
)
from kv_transfer.block_io import BlockIO
from kv_transfer.frames import (
    Frame,
    Kind,
    Offer,
    Problem,
    control_frame,
    problem_frame,
    read_frames,
    read_offer,
    read_problem,
    transfer_seed,
    verify_blocks,
)
from kv_transfer.ledger import End, LeaseLedger, Side
from kv_transfer.plan import ReceiveOpen

logger = logging.getLogger(__name__)
_MAX_TOMBSTONES = 8192
_MAX_REASON_CHARS = 500  # of what a peer says, kept in a tombstone
_OFFERED_TWICE = "this hand-over is already offered by another stream"


@dataclass(slots=True)
class _Expected:
    """One registered hand-over."""

    open: ReceiveOpen
    expiry: asyncio.TimerHandle
    layers_landed: list[int]  # per block of open.block_ids, a bit for each layer in the cache
    frames_landed: int = 0
    claimed: bool = False  # a stream serves it
    scope: asyncio.Timeout | None = None  # set exactly while that stream is read
    ended: bool = False


@dataclass(slots=True)
class Results:
    """What the engine thread takes: request ids whose hand-over ended, and blocks it must compute itself."""

    finished: set[str] = field(default_factory=set)
    bad_blocks: set[int] = field(default_factory=set)


class Receiver:
    """Lands hand-overs in the blocks the scheduler reserved for them."""

    def __init__(self, io: BlockIO, *, fingerprint: str, ledger: LeaseLedger) -> None:
        self._io = io
        self._fingerprint = fingerprint
        self._ledger = ledger
        self._all_layers = (1 << io.num_layers) - 1
        self._expected: dict[str, _Expected] = {}  # all and only open receives, by transfer id
        self._waiting: dict[str, asyncio.Future[_Expected]] = {}  # offers that came before the engine was ready
        self._dead: OrderedDict[str, str] = OrderedDict()  # transfer id -> why it will never happen; bounded
        self._lock = threading.Lock()
        self._results = Results()
        self._ended = threading.Event()  # set while results wait to be taken
        self.counts = {"landed": 0, "failed": 0, "cancelled": 0}
        self.bytes_landed = 0

    # Engine thread

    def take_results(self) -> Results:
        """Take what ended since the last call; called from the engine thread in every step."""
        with self._lock:
            results, self._results = self._results, Results()
            self._ended.clear()
        return results

    def wait_results(self, timeout_s: float) -> None:
        """Wait until a hand-over has ended, if any is open; for an engine that has nothing else to do."""
        if self._expected:
            self._ended.wait(timeout_s)

    # KV thread

    def expect(self, opened: ReceiveOpen) -> None:
        """Register reserved blocks; from here on the hand-over ends within its lease.

        A hand-over serves one request: a second one registered for it computes its prompt itself.
        """
        transfer_id = opened.params.transfer_id
        if transfer_id in self._expected:
            logger.warning("request %s recomputes its prompt: its hand-over is another's", opened.request_id)
            self._report(opened.request_id, set(opened.block_ids))
            return
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(opened.params.lease_s, self._expire, transfer_id)
        expected = _Expected(opened, expiry, [0] * len(opened.block_ids))
        self._expected[transfer_id] = expected
        num_blocks = len(opened.block_ids)
        num_bytes = num_blocks * self._io.block_bytes * self._io.num_layers
        self._ledger.grant(
            Side.RECEIVE,
            transfer_id,
            owner=opened.request_id,
            num_blocks=num_blocks,
            num_bytes=num_bytes,
            lease_s=opened.params.lease_s,
        )
        if (reason := self._dead.get(transfer_id)) is not None:
            self._fail(expected, TransferAborted(reason))
        elif (waiter := self._waiting.pop(transfer_id, None)) is not None and not waiter.done():
            waiter.set_result(expected)

    def cancel(self, transfer_id: str) -> None:
        """Give up a hand-over whose request ended; its blocks may be freed afterwards."""
        expected = self._expected.get(transfer_id)
        if expected is not None:
            self.counts["cancelled"] += 1
            self._end(expected, End.RELEASED)
        self._bury(transfer_id, "the decode request ended")

    def refuse(self, transfer_id: str, reason: str) -> None:
        """Note that a hand-over will not come; a request that waits for it recomputes at once."""
        expected = self._expected.get(transfer_id)
        if expected is not None:
            self._fail(expected, TransferAborted(reason))
        self._bury(transfer_id, reason)

    async def serve(self, messages: AsyncIterator[bytes], *, wait_s: float) -> AsyncGenerator[bytes, None]:
        """Answer one incoming hand-over stream; yields the frames to send back.

        `wait_s` bounds how long the offer may be in coming, and then how long it may wait for its request to be
        scheduled here.
        """
        expected: _Expected | None = None
        try:
            offer = read_offer(_only(await _first(messages, wait_s)))
            expected = await self._match(offer, wait_s)
            yield control_frame(Kind.GRANT, first_block=expected.open.first_block)
            await self._land(expected, messages, transfer_seed(offer.transfer_id))
            yield control_frame(Kind.LANDED)
        except KVTransferError as exc:
            logger.warning("hand-over failed: %s: %s", exc.name, exc)
            kind = Kind.REFUSED if expected is None else Kind.FAILED
            if expected is not None:
                self._fail(expected, exc)
            yield problem_frame(kind, Problem(exc.name, str(exc)))
        finally:
            # Reached with an open hand-over when the stream broke, wherever that was.
            if expected is not None and not expected.ended:
                self._fail(expected, TransferAborted("the sender went away"))

    async def _match(self, offer: Offer, wait_s: float) -> _Expected:
        if offer.fingerprint != self._fingerprint:
            reason = f"fingerprint of {offer.worker_id} is {offer.fingerprint}, here {self._fingerprint}"
            self.refuse(offer.transfer_id, reason)
            raise PeerMismatch(reason)
        expected = await self._when_expected(offer.transfer_id, wait_s)
        if expected.claimed:
            raise TransferAborted(_OFFERED_TWICE)
        expected.claimed = True
        opened = expected.open
        problem = None
        if (offer.block_bytes, offer.num_layers) != (self._io.block_bytes, self._io.num_layers):
            problem = "block size or number of layers differ"
        elif offer.num_blocks != opened.num_blocks or offer.prompt_digest != opened.prompt_digest:
            problem = "the two legs rendered different prompts"
        if problem is not None:
            error = PeerMismatch(problem)
            self._fail(expected, error)
            raise error
        return expected

    async def _when_expected(self, transfer_id: str, wait_s: float) -> _Expected:
        if transfer_id in self._dead:
            raise TransferAborted(self._dead[transfer_id])
        if (expected := self._expected.get(transfer_id)) is not None:
            return expected
        if transfer_id in self._waiting:
            raise TransferAborted(_OFFERED_TWICE)
        waiter: asyncio.Future[_Expected] = asyncio.get_running_loop().create_future()
        self._waiting[transfer_id] = waiter
        try:
            async with asyncio.timeout(wait_s):
                return await waiter
        except TimeoutError as exc:
            reason = f"no request took the offer within {wait_s:g} s"
            self.refuse(transfer_id, reason)
            raise TransferTimeout(reason) from exc
        except asyncio.CancelledError:
            self.refuse(transfer_id, "the sender went away")
            raise
        finally:
            self._waiting.pop(transfer_id, None)

    async def _land(self, expected: _Expected, messages: AsyncIterator[bytes], seed: int) -> None:
        """Read the stream until the hand-over ends, on this side too: a sender that is silent is not waited for."""
        if expected.ended:
            raise KVExpired("the hand-over had ended on this side")
        try:
            async with asyncio.timeout(None) as expected.scope:
                await self._read_blocks(expected, messages, seed)
        except TimeoutError as exc:
            raise KVExpired("the hand-over has ended on this side") from exc
        finally:
            expected.scope = None

    async def _read_blocks(self, expected: _Expected, messages: AsyncIterator[bytes], seed: int) -> None:
        async for message in messages:
            for frame in read_frames(message):
                if expected.ended:
                    raise KVExpired("the hand-over had ended on this side")
                if frame.kind is Kind.BLOCKS:
                    verify_blocks(frame, seed)
                    self._write(expected, frame)
                elif frame.kind is Kind.ABORT:
                    problem = read_problem(frame)
                    raise TransferAborted(f"{problem.error}: {problem.message}")
                elif frame.kind is Kind.END:
                    self._complete(expected, frame.num_blocks)
                    return
                else:
                    raise CorruptFrame(f"unexpected {frame.kind.name} frame")
        raise TransferAborted("the stream ended before the last block")

    def _write(self, expected: _Expected, frame: Frame) -> None:
        ids = expected.open.block_ids
        start = frame.first_block - expected.open.first_block
        end = start + frame.num_blocks
        if frame.layer >= self._io.num_layers or start < 0 or end > len(ids):
            raise CorruptFrame("a frame points outside the reserved blocks")
        if frame.payload.nbytes != frame.num_blocks * self._io.block_bytes:
            raise CorruptFrame("a frame's size does not match its blocks")
        self._io.scatter(frame.layer, ids[start:end], frame.payload)
        for index in range(start, end):
            expected.layers_landed[index] |= 1 << frame.layer
        expected.frames_landed += 1
        self.bytes_landed += frame.payload.nbytes

    def _complete(self, expected: _Expected, frames_sent: int) -> None:
        missing = sum(1 for landed in expected.layers_landed if landed != self._all_layers)
        if missing or frames_sent != expected.frames_landed:
            raise CorruptFrame(
                f"{missing} blocks are incomplete; {expected.frames_landed} of {frames_sent} frames came"
            )
        self.counts["landed"] += 1
        expected.scope = None
        self._end(expected, End.RELEASED)

    def _expire(self, transfer_id: str) -> None:
        expected = self._expected.get(transfer_id)
        if expected is not None:
            self._fail(expected, KVExpired("the lease ran out"), End.EXPIRED)

    def _fail(self, expected: _Expected, error: KVTransferError, how: End = End.RELEASED) -> None:
        """End a hand-over without (all of) its bytes: the engine computes from the first incomplete block on."""
        if expected.ended:
            return
        self.counts["failed"] += 1
        logger.warning("request %s recomputes its prompt: %s: %s", expected.open.request_id, error.name, error)
        ids = expected.open.block_ids
        bad = {ids[i] for i, landed in enumerate(expected.layers_landed) if landed != self._all_layers}
        self._bury(expected.open.params.transfer_id, f"{error.name}: {error}")
        self._end(expected, how, bad or set(ids[-1:]))

    def _end(self, expected: _Expected, how: End, bad_blocks: set[int] | None = None) -> None:
        if expected.ended:
            return
        expected.ended = True
        expected.expiry.cancel()
        if expected.scope is not None:
            expected.scope.reschedule(asyncio.get_running_loop().time())
        del self._expected[expected.open.params.transfer_id]
        self._ledger.end(Side.RECEIVE, expected.open.params.transfer_id, how)
        self._report(expected.open.request_id, bad_blocks or set())

    def _report(self, request_id: str, bad_blocks: set[int]) -> None:
        with self._lock:
            self._results.finished.add(request_id)
            self._results.bad_blocks.update(bad_blocks)
            self._ended.set()

    def _bury(self, transfer_id: str, reason: str) -> None:
        self._dead[transfer_id] = reason = reason[:_MAX_REASON_CHARS]
        if len(self._dead) > _MAX_TOMBSTONES:
            self._dead.popitem(last=False)
        waiter = self._waiting.pop(transfer_id, None)
        if waiter is not None and not waiter.done():
            waiter.set_exception(TransferAborted(reason))


async def _first(messages: AsyncIterator[bytes], wait_s: float) -> bytes:
    try:
        async with asyncio.timeout(wait_s):
            async for message in messages:
                return message
    except TimeoutError as exc:
        raise TransferTimeout(f"no offer came within {wait_s:g} s") from exc
    raise TransferAborted("the stream ended before its offer")


def _only(message: bytes) -> Frame:
    frames = list(read_frames(message))
    if len(frames) != 1:
        raise CorruptFrame(f"expected one frame, got {len(frames)}")
    return frames[0]
