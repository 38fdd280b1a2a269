"""The prefill side: blocks taken into frames as they are computed, sent when the decode side grants.

The engine thread copies to staging memory (so its blocks are free at once), or leaves blocks in the cache for a peer
that reads them there, and posts; everything else happens on the KV thread's event loop. Blocks that stay are the
engine's again when `let_go` says so, or at once after `call_back`, which copies those out that the peer has not read.
Staging is bounded: a hand-over that finds it full is given up and the decode side recomputes. When a stream breaks, the
hand-over goes on over the next way that is open, from the frames that have not landed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from core.errors import KVTransferError, StagingFull, TransferAborted
from kv_transfer.digest import SendDigests
from kv_transfer.frames import Kind, Offer, control_frame, offer_frame, transfer_seed
from kv_transfer.ledger import End, LeaseLedger, Side
from kv_transfer.link_turns import LinkTurns
from kv_transfer.overlap import Overlap
from kv_transfer.replies import Verdict, checked
from kv_transfer.send_queue import SendQueue
from kv_transfer.sending import Sending
from kv_transfer.staging import Segment, StagingPool
from kv_transfer.transport import CacheReader, Outgoing, Ways

if TYPE_CHECKING:
    from kv_transfer.cached_blocks import CachedBlocks
    from kv_transfer.device_blocks import DeviceBuffer

logger = logging.getLogger(__name__)
MAX_ATTEMPTS: Final = 3  # streams that one hand-over may use up
BATCH_BYTES: Final = 1 << 20  # frames are handed on together up to this size: each hand-on costs 30-60 us
HOLD_S: Final = 0.1  # that blocks wait in the cache when the last was put and the peer reads nothing
_LAST_WORD_S: Final = 0.5  # how long the peer's verdict may follow the break of its stream
_MAX_PEERS: Final = 1024

Withdraw = Callable[[str, str, str], Awaitable[None]]  # peer, transfer id, reason; never raises a KVTransferError


class Sender:
    """Streams hand-overs out of one staging pool."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ways: Ways,
        withdraw: Withdraw,
        *,
        ledger: LeaseLedger,
        pool: StagingPool,
        digests: SendDigests | None = None,
    ) -> None:
        self._loop = loop
        self._ways = ways
        self._withdraw = withdraw
        self._ledger = ledger
        self._pool = pool
        self._digests = digests
        self._open: dict[str, Sending] = {}  # all and only unfinished sends, by transfer id
        self._tasks: set[asyncio.Task[None]] = set()  # all and only those that run
        self._reading: set[str] = set()  # peers whose last stream read this engine's cache
        self._turns = LinkTurns()
        self._is_closed = False
        self.counts = {"sent": 0, "declined": 0, "failed": 0}
        self.bytes_sent = 0
        self.bytes_uncopied = 0  # of these, read by the peer in the cache
        self.resumed = 0  # streams that went on with a hand-over whose stream had broken
        self.overlap = Overlap()

    @property
    def staged_bytes(self) -> int:
        """Staging memory in use: copied out of the cache and neither landed nor dropped."""
        return self._pool.used_bytes

    @property
    def cached_bytes(self) -> int:
        """Bytes that wait in the cache, until they have landed or are copied out."""
        return sum(handover.queue.cached_bytes for handover in list(self._open.values()))

    # Engine thread

    def open(self, offer: Offer, *, request_id: str, peer: str, lease_s: float, due_s: float | None = None) -> None:
        """Start a hand-over: the offer goes out while the first layer is still being computed.

        On a link that is too short for all, those go first that are due first, at `due_s` of the monotonic clock;
        by default as its lease ends.

        One that is open already goes on as it is: a prompt computed again after a preemption has the same blocks.
        """
        if offer.transfer_id in self._open:
            logger.warning("hand-over %s is under way already", offer.transfer_id)
            return
        queue = SendQueue(self._pool, seed=transfer_seed(offer.transfer_id), block_bytes=offer.block_bytes)
        due_s = time.monotonic() + lease_s if due_s is None else due_s
        stays = peer in self._reading
        handover = Sending(offer, request_id, peer, lease_s, due_s, queue, stays)
        self._open[offer.transfer_id] = handover
        if self._digests is not None:
            self._digests.begin(offer.transfer_id, peer, offer.num_blocks)
        self._loop.call_soon_threadsafe(self._start, handover)

    def wants(self, transfer_id: str, first_block: int, num_blocks: int) -> int | None:
        """Say from which block of a range on bytes are wanted, or None when none are."""
        handover = self._open.get(transfer_id)
        if handover is None or handover.problem is not None:
            return None
        wanted = max(first_block, handover.queue.first_needed)
        return wanted if wanted < first_block + num_blocks else None

    def stays_in_cache(self, transfer_id: str) -> bool:
        """Whether blocks may be put that are left in the cache."""
        handover = self._open.get(transfer_id)
        return handover is not None and handover.stays and not handover.is_called_back and handover.problem is None

    def take(self, transfer_id: str, size: int) -> Segment | None:
        """Take memory for one frame, to be filled and `put`; None when no frame is wanted. Full, it gives up."""
        handover = self._open.get(transfer_id)
        if handover is None or handover.problem is not None:
            return None
        if (segment := self._pool.take(size)) is None:
            self._give_up(handover, self._full())
        return segment

    def put(
        self,
        transfer_id: str,
        segment: Segment | None,
        *,
        layer: int,
        first_block: int,
        num_blocks: int,
        header: bytes,
        device: DeviceBuffer | None = None,
        cached: CachedBlocks | None = None,
    ) -> None:
        """Hand a frame over, once, in order: a filled segment, one kept for what is on `device`, or `cached` blocks."""
        handover = self._open.get(transfer_id)
        if handover is None:
            if segment is not None:
                self._pool.give_back(segment)
            return
        place = {"layer": layer, "first_block": first_block, "num_blocks": num_blocks}
        handover.queue.put(segment, **place, header=header, device=device, cached=cached)
        if not handover.announced:  # one wake-up for all frames that are put before it is heard
            handover.announced = True
            self._loop.call_soon_threadsafe(handover.wake.set)

    def finish(self, transfer_id: str) -> None:
        """Note that the last frame of a hand-over was put."""
        handover = self._open.get(transfer_id)
        if handover is not None:
            handover.completed_s = time.monotonic()
            handover.complete = True
            self._loop.call_soon_threadsafe(handover.wake.set)

    def let_go(self, transfer_id: str) -> bool:
        """Whether no block of a hand-over is wanted in the cache any more; what a peer does not read is called back."""
        handover = self._open.get(transfer_id)
        if handover is None or not handover.queue.cached_bytes:
            return True
        if time.monotonic() - max(handover.completed_s, handover.progress_s) > HOLD_S:
            self.call_back(transfer_id)
            return True
        return False

    def call_back(self, transfer_id: str) -> None:
        """Take all blocks back that a hand-over has in the cache: copied out, and read there by nobody any more."""
        handover = self._open.get(transfer_id)
        if handover is None or not handover.queue.cached_bytes:
            return
        handover.is_called_back = True
        was_given = handover.queue.copy_out() if handover.problem is None else None
        if was_given is None:
            self._give_up(handover, self._full())
        # Read after the copies: a stream that ended before has nothing that counts any more.
        if was_given is not False and (reader := handover.reader) is not None:
            reader.revoke()
            self._loop.call_soon_threadsafe(self._break_off, handover, reader)

    def abort(self, transfer_id: str, reason: str) -> None:
        """Give a hand-over up; from any thread."""
        handover = self._open.get(transfer_id)
        if handover is not None:
            self._give_up(handover, TransferAborted(reason))

    def _full(self) -> StagingFull:
        used, size = self._pool.used_bytes, self._pool.size_bytes
        return StagingFull(f"{used} of {size} bytes of KV wait to land; raise kv.staging_mb")

    def _give_up(self, handover: Sending, problem: KVTransferError) -> None:
        if handover.problem is None:
            handover.problem = problem
            self._loop.call_soon_threadsafe(self._stop, handover)

    # KV thread

    async def close(self) -> None:
        """Give up what is still open, and wait until it is; what is opened later never starts."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop(self, handover: Sending) -> None:
        if handover.task is not None and handover.running:
            handover.task.cancel()

    def _start(self, handover: Sending) -> None:
        offer = handover.offer
        if self._is_closed:
            del self._open[offer.transfer_id]
            if self._digests is not None:
                self._digests.end(offer.transfer_id, handover.peer, landed=False)
            return
        self._ledger.grant(
            Side.SEND,
            offer.transfer_id,
            owner=handover.request_id,
            num_blocks=offer.num_blocks,
            num_bytes=offer.num_bytes,
            lease_s=handover.lease_s,
            peer=handover.peer,
            epoch=offer.epoch,
        )
        handover.task = self._loop.create_task(self._run(handover), name=f"kv-send-{offer.transfer_id}")
        self._tasks.add(handover.task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._release(handover, "failed", End.RELEASED)  # does nothing unless it was cancelled before it ran at all

        handover.task.add_done_callback(done)

    def _release(self, handover: Sending, outcome: str, how: End) -> None:
        """End a hand-over's lease and give its staged bytes back, once."""
        transfer_id = handover.offer.transfer_id
        if self._open.get(transfer_id) is not handover:
            return
        del self._open[transfer_id]
        self.counts[outcome] += 1
        self._turns.finish(transfer_id)
        handover.queue.close()
        if self._digests is not None:
            self._digests.end(transfer_id, handover.peer, landed=outcome == "sent")
        if outcome == "sent":
            self._ledger.landed(Side.SEND, transfer_id)
        self._ledger.end(Side.SEND, transfer_id, how)

    async def _run(self, handover: Sending) -> None:
        """Own one hand-over from offer to end; every way out releases its lease and its staged bytes."""
        how, outcome = End.RELEASED, "failed"
        transfer_id = handover.offer.transfer_id
        lost: KVTransferError | None = None  # why the peer cannot know that the hand-over is over
        handover.running = True
        self._turns.arrive(transfer_id, handover.due_s, handover.offer.num_bytes)
        try:
            if handover.problem is not None:
                raise handover.problem
            async with asyncio.timeout(handover.lease_s):
                await self._deliver(handover)
            outcome = "sent"
        except TimeoutError:
            how = End.EXPIRED
            logger.warning("hand-over %s expired after %g s", transfer_id, handover.lease_s)
        except Verdict as verdict:
            outcome = "declined" if verdict.declines else "failed"
            level = logging.INFO if verdict.declines else logging.WARNING
            logger.log(level, "hand-over %s %s: %s", transfer_id, outcome, verdict.error)
        except KVTransferError as exc:
            lost = exc
        except asyncio.CancelledError:
            lost = handover.problem
            if lost is None:  # not given up: the endpoint closes
                raise
        finally:
            handover.running = False
            self._release(handover, outcome, how)
        if lost is not None:
            logger.warning("hand-over %s failed: %s: %s", transfer_id, lost.name, lost)
            await self._withdraw(handover.peer, transfer_id, f"{lost.name}: {lost}")

    async def _deliver(self, handover: Sending) -> None:
        """Try one stream after the other until all has landed."""
        peer, failed = handover.peer, frozenset[str]()
        for attempt in range(MAX_ATTEMPTS):
            name, stream = await self._ways.open(
                peer, attempt=attempt, failed=failed, timeout_s=handover.lease_s, num_bytes=handover.offer.num_bytes
            )
            self._note_stream(handover, stream)
            try:
                await self._exchange(handover, stream, attempt)
            except KVTransferError as exc:
                if isinstance(exc, StagingFull):  # no fault of the stream
                    raise
                broken = exc
                if handover.broken_off:
                    handover.broken_off = False
                else:
                    self._ways.failed(peer, name)
                    failed |= {name}
            else:
                self._ways.done(peer, name, handover.queue.num_bytes, handover.busy_s)
                self.overlap.add(handover.queue.num_bytes, handover.sent_before_complete, handover.completed_s)
                return
            finally:
                stream.close()
                handover.reader = None
            logger.warning("stream %d of %s over %s broke: %s", attempt + 1, handover.offer.transfer_id, name, broken)
        raise TransferAborted(f"{MAX_ATTEMPTS} streams broke, the last one: {broken}") from broken

    def _note_stream(self, handover: Sending, stream: Outgoing) -> None:
        """Learn whether the peer of a stream reads the cache: what comes next is left there, or copied."""
        handover.reader = stream if isinstance(stream, CacheReader) else None
        handover.stays = handover.reader is not None
        (self._reading.add if handover.stays else self._reading.discard)(handover.peer)
        while len(self._reading) > _MAX_PEERS:
            self._reading.pop()

    def _break_off(self, handover: Sending, reader: CacheReader) -> None:
        """End a stream that was revoked; the hand-over goes on over another."""
        if handover.reader is reader:
            handover.broken_off = True
            reader.close()

    async def _exchange(self, handover: Sending, stream: Outgoing, attempt: int) -> None:
        """Send over one stream to the peer's last word. Raises Verdict, or a KVTransferError if the stream broke."""
        offer = handover.offer
        await stream.write(offer_frame(replace(offer, attempt=attempt)))
        reply = checked(await stream.read(), Kind.GRANT, Kind.LANDED)
        if reply.kind is Kind.LANDED:  # the last stream broke with the word on its way
            return
        handover.queue.go_on(first_needed=reply.first_block, landed=reply.num_blocks)
        self.resumed += attempt > 0
        self._ledger.transferring(Side.SEND, offer.transfer_id, peer=handover.peer, epoch=offer.epoch)
        # The decode side may end the hand-over at any time, so its words are awaited from here on.
        reading = asyncio.ensure_future(self._read(handover, stream))
        writing = asyncio.ensure_future(self._write(handover, stream))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and (broken := writing.exception()) is not None:
                await asyncio.wait({reading}, timeout=_LAST_WORD_S)
                if not reading.done():
                    raise broken
            await reading
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, handover: Sending, stream: Outgoing) -> None:
        """Take acknowledgements until the word that all has landed."""
        while True:
            reply = checked(await stream.read(), Kind.ACK, Kind.LANDED)
            if reply.kind is Kind.LANDED:
                if handover.ended_s is not None:
                    handover.busy_s += time.monotonic() - handover.ended_s
                return
            handover.queue.acknowledge(reply.num_blocks)
            handover.progress_s = time.monotonic()
            self._ledger.progress(Side.SEND, handover.offer.transfer_id)

    async def _write(self, handover: Sending, stream: Outgoing) -> None:
        """Send what is staged, and END after the last frame."""
        queue = handover.queue
        while True:
            handover.wake.clear()
            handover.announced = False
            complete = handover.complete  # read before the queue: the engine sets it after the last put
            batch = queue.take(BATCH_BYTES, cached=handover.reader is not None)
            if batch:
                num_bytes = sum(frame.size for frame in batch)
                async with self._turns.turn(handover.offer.transfer_id, num_bytes):
                    began_s = time.monotonic()
                    await stream.write_blocks(batch)
                    handover.busy_s += time.monotonic() - began_s
                self.bytes_sent += num_bytes
                self.bytes_uncopied += sum(frame.size for frame in batch if frame.cached is not None)
                if not handover.complete:
                    handover.sent_before_complete = queue.num_bytes
            elif complete:
                await stream.write(self._last_frame(handover))
                handover.ended_s = time.monotonic()
                return
            else:
                await handover.wake.wait()

    def _last_frame(self, handover: Sending) -> bytes:
        queue = handover.queue
        digest = b""
        if self._digests is not None:
            digest = self._digests.payload(handover.offer.transfer_id, queue.first_needed)
        return control_frame(Kind.END, digest, count=queue.num_frames)
