"""The decode side: expected hand-overs, who may send them, and what becomes of each.

All state changes happen on the KV thread's event loop; the engine thread only posts commands and takes results. A
hand-over ends exactly once: landed, failed (the engine recomputes what is missing) or cancelled. Blocks are reported
to the engine only after the last byte was written, so no block is freed under a running write. A stream that breaks
may be followed by another of the same sender within a short grace.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from core.errors import (
    CorruptFrame,
    DigestMismatch,
    KVExpired,
    KVTransferError,
    PeerMismatch,
    TransferAborted,
    TransferTimeout,
)
from kv_transfer.block_io import BlockIO
from kv_transfer.digest import check_digest
from kv_transfer.expected import ENDED, Expected, Waiter
from kv_transfer.frames import (
    MAX_CONTROL_BYTES,
    Header,
    Kind,
    Offer,
    control_frame,
    read_offer,
    transfer_seed,
    verify_control,
)
from kv_transfer.landing import ACK_BYTES, Aborted, Landed, Landing, Stopped
from kv_transfer.last_words import answer, drop
from kv_transfer.ledger import End, LeaseLedger, Side
from kv_transfer.memory import Memory
from kv_transfer.plan import ReceiveOpen
from kv_transfer.quarantine import Quarantine
from kv_transfer.transport import Incoming

logger = logging.getLogger(__name__)
RESUME_S: Final = 0.5  # how long a hand-over whose stream broke waits for the next one
_OFFERED_TWICE = "this hand-over is already offered by another stream"


@dataclass(slots=True)
class Results:
    """What the engine thread takes: request ids whose hand-over ended, and blocks it must compute itself."""

    finished: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)  # of `finished`, those with bad blocks
    bad_blocks: set[int] = field(default_factory=set)


class Receiver:
    """Lands hand-overs in the blocks the scheduler reserved for them.

    `wait_s` bounds how long an offer may be in coming, and then how long it may wait for its request.
    """

    def __init__(
        self, io: BlockIO, *, fingerprint: str, ledger: LeaseLedger, wait_s: float, ack_bytes: int = ACK_BYTES
    ) -> None:
        self._io = io
        self._fingerprint = fingerprint
        self._ledger = ledger
        self._wait_s = wait_s
        self._ack_bytes = ack_bytes
        self._expected: dict[str, Expected] = {}  # all and only open receives, by transfer id
        self._waiting: dict[str, Waiter] = {}  # all and only offers without a request, by transfer id
        self._graces: dict[str, asyncio.TimerHandle] = {}  # hand-overs whose stream broke, until the next or the end
        self._memory = Memory()
        self.quarantine = Quarantine(time.monotonic)
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
        expiry = asyncio.get_running_loop().call_later(opened.params.lease_s, self._expire, transfer_id)
        expected = Expected(opened, expiry, Landed(self._io, opened.block_ids, opened.first_block))
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
        if (reason := self._memory.why_dead(transfer_id)) is not None:
            self._fail(expected, TransferAborted(reason))
        elif (waiter := self._waiting.pop(transfer_id, None)) is not None and not waiter.arrival.done():
            waiter.arrival.set_result(expected)

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

    async def serve(self, incoming: Incoming) -> None:
        """Answer one stream, from its offer to the last word; returns when it does nothing any more."""
        first: asyncio.Future[Header] | None = None
        try:
            offer = await self._read_offer(incoming)
            first = asyncio.ensure_future(incoming.header())  # an offer that waits is watched: its sender may leave
            if offer.attempt > 0 and self._memory.has_landed(offer):  # LANDED was lost with the stream before
                await incoming.write(control_frame(Kind.LANDED))
                return
            expected, landing = await self._match(offer, incoming, first)
        except KVTransferError as exc:
            logger.warning("offer refused: %s: %s", exc.name, exc)
            await answer(incoming, Kind.REFUSED, exc)
        else:
            await self._serve_granted(expected, landing, first)
        finally:
            if first is not None:
                await drop(first)
            incoming.close()

    async def _serve_granted(self, expected: Expected, landing: Landing, first: asyncio.Future[Header]) -> None:
        error: KVTransferError | None = None
        try:
            count = expected.landed.num_frames
            expected.check_open()
            await landing.incoming.write(control_frame(Kind.GRANT, first_block=expected.open.first_block, count=count))
            digest = await landing.run(
                first,
                expected.landed,
                self._io,
                seed=transfer_seed(expected.transfer_id),
                ack_bytes=self._ack_bytes,
                progress=lambda size: self._note_landed(expected.transfer_id, size),
            )
            await check_digest(self._io, digest, expected.open.first_block, expected.open.block_ids)
            expected.check_open()
            self._complete(expected)
            await landing.incoming.write(control_frame(Kind.LANDED))
        except Stopped:
            error = KVExpired(ENDED)
        except (CorruptFrame, DigestMismatch) as exc:
            self._distrust(expected, exc)
            error = exc
        except (KVExpired, Aborted) as exc:
            self._fail(expected, exc)
            error = exc
        except KVTransferError as exc:
            logger.info("a stream of hand-over %s broke: %s", expected.transfer_id, exc)
        finally:
            self._leave(expected, landing)
        if error is not None:
            await answer(landing.incoming, Kind.FAILED, error)

    def _distrust(self, expected: Expected, error: KVTransferError) -> None:
        """End a hand-over that brought wrong bytes, and hold that against its sender."""
        assert expected.sender is not None, "a stream that landed bytes was let in"
        if isinstance(error, DigestMismatch):
            expected.landed.forget()
        self.quarantine.mismatch(expected.sender, str(error))
        self._fail(expected, error)

    def _leave(self, expected: Expected, landing: Landing) -> None:
        landing.leave()
        if expected.landing is landing:
            expected.landing = None
            if expected.end is None:
                self._wait_for_next(expected.transfer_id)
            else:
                self._settle(expected)

    async def _read_offer(self, incoming: Incoming) -> Offer:
        try:
            async with asyncio.timeout(self._wait_s):
                header = await incoming.header()
                if header.kind is not Kind.OFFER or header.size > MAX_CONTROL_BYTES:
                    raise CorruptFrame(f"expected an offer, got {header.kind.name}")
                payload = await incoming.payload(header)
        except TimeoutError as exc:
            raise TransferTimeout(f"no offer came within {self._wait_s:g} s") from exc
        verify_control(header, payload)
        return read_offer(payload)

    async def _match(self, offer: Offer, incoming: Incoming, first: asyncio.Future[Header]) -> tuple[Expected, Landing]:
        self._memory.check_epoch(offer)
        try:
            self.quarantine.check((offer.worker_id, offer.epoch))
            if offer.fingerprint != self._fingerprint:
                raise PeerMismatch(f"fingerprint of {offer.worker_id} is {offer.fingerprint}, here {self._fingerprint}")
        except PeerMismatch as exc:
            self.refuse(offer.transfer_id, str(exc))
            raise
        expected = await self._when_expected(offer, first)
        landing = await self._take_over(expected, offer, incoming)
        opened = expected.open
        problem = None
        if (offer.block_bytes, offer.num_layers) != (self._io.block_bytes, self._io.num_layers):
            problem = "block size or number of layers differ"
        elif offer.num_blocks != opened.num_blocks or offer.prompt_digest != opened.prompt_digest:
            problem = "the two legs rendered different prompts"
        if problem is not None:
            error = PeerMismatch(problem)
            self._fail(expected, error)
            self._leave(expected, landing)
            raise error
        self._ledger.transferring(Side.RECEIVE, offer.transfer_id, peer=offer.worker_id, epoch=offer.epoch)
        return expected, landing

    async def _take_over(self, expected: Expected, offer: Offer, incoming: Incoming) -> Landing:
        """Let a stream in; one of an earlier attempt is ended and has stopped writing before this returns."""
        sender = (offer.worker_id, offer.epoch)
        if expected.sender not in (None, sender) or offer.attempt <= expected.attempt:
            raise TransferAborted(_OFFERED_TWICE)
        expected.sender, expected.attempt = sender, offer.attempt
        self._end_grace(offer.transfer_id)
        while (earlier := expected.landing) is not None:
            earlier.stop()
            earlier.incoming.close()
            await earlier.gone.wait()
            if expected.attempt != offer.attempt:
                raise TransferAborted(_OFFERED_TWICE)
        expected.check_open()
        self._end_grace(offer.transfer_id)
        expected.landing = Landing(incoming, offer.attempt)
        return expected.landing

    async def _when_expected(self, offer: Offer, first: asyncio.Future[Header]) -> Expected:
        transfer_id = offer.transfer_id
        if (reason := self._memory.why_dead(transfer_id)) is not None:
            raise TransferAborted(reason)
        if (expected := self._expected.get(transfer_id)) is not None:
            return expected
        if (other := self._waiting.get(transfer_id)) is not None:
            self._supersede(other, offer)
        arrival: asyncio.Future[Expected] = asyncio.get_running_loop().create_future()
        waiter = self._waiting[transfer_id] = Waiter(offer, arrival)
        self._end_grace(transfer_id)
        try:
            watched: set[asyncio.Future[Any]] = {arrival, first}
            await asyncio.wait(watched, timeout=self._wait_s, return_when=asyncio.FIRST_COMPLETED)
            if arrival.done():
                return arrival.result()
            if first.done():
                first.result()  # raises what became of the stream
                raise CorruptFrame("the sender spoke out of turn")
            reason = f"no request took the offer within {self._wait_s:g} s"
            self.refuse(transfer_id, reason)
            raise TransferTimeout(reason)
        finally:
            if self._waiting.get(transfer_id) is waiter:
                del self._waiting[transfer_id]
                self._wait_for_next(transfer_id)
            if not arrival.cancel():
                arrival.exception()  # known already; taken, so that nobody misses it

    @staticmethod
    def _supersede(waiter: Waiter, offer: Offer) -> None:
        known = waiter.offer
        same = (known.worker_id, known.epoch) == (offer.worker_id, offer.epoch)
        if not same or offer.attempt <= known.attempt:
            raise TransferAborted(_OFFERED_TWICE)
        if not waiter.arrival.done():
            waiter.arrival.set_exception(TransferAborted(_OFFERED_TWICE))

    def _wait_for_next(self, transfer_id: str) -> None:
        """Give the sender of a stream that broke the time to offer again; then the engine recomputes."""
        self._end_grace(transfer_id)
        self._graces[transfer_id] = asyncio.get_running_loop().call_later(RESUME_S, self._sender_left, transfer_id)

    def _sender_left(self, transfer_id: str) -> None:
        del self._graces[transfer_id]
        self.refuse(transfer_id, "the sender went away")

    def _end_grace(self, transfer_id: str) -> None:
        if (grace := self._graces.pop(transfer_id, None)) is not None:
            grace.cancel()

    def _note_landed(self, transfer_id: str, size: int) -> None:
        self.bytes_landed += size
        self._ledger.progress(Side.RECEIVE, transfer_id)

    def _complete(self, expected: Expected) -> None:
        assert expected.sender is not None, "a stream that landed was let in"
        self.counts["landed"] += 1
        self._memory.note_landed(expected.transfer_id, expected.sender)
        self._ledger.landed(Side.RECEIVE, expected.transfer_id)
        self._end(expected, End.RELEASED)

    def _expire(self, transfer_id: str) -> None:
        expected = self._expected.get(transfer_id)
        if expected is not None:
            self._fail(expected, KVExpired("the lease ran out"), End.EXPIRED)

    def _fail(self, expected: Expected, error: KVTransferError, how: End = End.RELEASED) -> None:
        """End a hand-over without (all of) its bytes: the engine computes from the first incomplete block on."""
        if expected.end is not None:
            return
        self.counts["failed"] += 1
        logger.warning("request %s recomputes its prompt: %s: %s", expected.open.request_id, error.name, error)
        self._bury(expected.transfer_id, f"{error.name}: {error}")
        self._end(expected, how, expected.landed.incomplete_blocks() or set(expected.open.block_ids[-1:]))

    def _end(self, expected: Expected, how: End, bad_blocks: set[int] | None = None) -> None:
        """End a hand-over; it is reported now, or when the frame that is in landing has ended."""
        if expected.end is not None:
            return
        expected.end = how, bad_blocks or set()
        expected.expiry.cancel()
        self._end_grace(expected.transfer_id)
        del self._expected[expected.transfer_id]
        if expected.landing is not None:
            expected.landing.stop()
            if expected.landing.writing:
                return
            expected.landing = None
        self._settle(expected)

    def _settle(self, expected: Expected) -> None:
        assert expected.end is not None, "only what has ended is settled"
        how, bad_blocks = expected.end
        self._ledger.end(Side.RECEIVE, expected.transfer_id, how)
        self._report(expected.open.request_id, bad_blocks)

    def _report(self, request_id: str, bad_blocks: set[int]) -> None:
        with self._lock:
            self._results.finished.add(request_id)
            self._results.bad_blocks.update(bad_blocks)
            self._results.failed.update({request_id} if bad_blocks else ())
            self._ended.set()

    def _bury(self, transfer_id: str, reason: str) -> None:
        reason = self._memory.bury(transfer_id, reason)
        waiter = self._waiting.pop(transfer_id, None)
        if waiter is not None and not waiter.arrival.done():
            waiter.arrival.set_exception(TransferAborted(reason))
