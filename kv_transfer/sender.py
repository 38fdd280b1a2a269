"""The prefill side: blocks copied out of the cache as they are computed, sent when the decode side grants.

The engine thread copies (so its blocks are free at once) and posts; everything else happens on the KV thread's event
loop. Staged bytes are bounded: a hand-over that would exceed the bound is given up and the decode side recomputes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from core.errors import KVTransferError, PeerMismatch, StagingFull, TransferAborted, TransferTimeout
from kv_transfer.frames import (
    Kind,
    Offer,
    control_frame,
    offer_frame,
    read_frames,
    read_problem,
    transfer_seed,
    without_first_blocks,
)
from kv_transfer.ledger import End, LeaseLedger, Side

logger = logging.getLogger(__name__)
GROUP_BYTES = 256 << 10  # a layer of a short prompt waits for the next: sending one costs 0.4 ms of the engine's core
_MESSAGE_BYTES = 1 << 20  # small frames are joined up to this size: one message costs 30-60 us whatever its size


class Stream(Protocol):
    """One open hand-over stream to a peer."""

    async def write(self, message: bytes) -> None:
        """Send one message. Raises a KVTransferError when the peer is gone."""
        ...

    async def read(self) -> bytes:
        """Wait for one message. Raises a KVTransferError when the stream ended."""
        ...

    def close(self) -> None:
        """End the stream at once; idempotent."""
        ...


class Peers(Protocol):
    """The ways to reach decode engines."""

    def connect(self, peer: str, timeout_s: float) -> Stream:
        """Open a hand-over stream that lives at most `timeout_s`."""
        ...

    async def refuse(self, peer: str, transfer_id: str, reason: str) -> None:
        """Tell a peer, as well as can be, that an offer is withdrawn; never raises a KVTransferError."""
        ...


@dataclass(slots=True)
class Overlap:
    """How much of the transfers was hidden behind the prefill that made them, summed over landed hand-overs."""

    num_bytes: int = 0
    hidden_bytes: int = 0  # had left when the last layer was computed
    exposed_s: float = 0.0  # from the last layer computed to the decode side's word that all is in its cache

    def add(self, num_bytes: int, hidden_bytes: int, completed_s: float) -> None:
        """Count one hand-over that has just landed."""
        self.num_bytes += num_bytes
        self.hidden_bytes += hidden_bytes
        self.exposed_s += time.monotonic() - completed_s


@dataclass(slots=True)
class _Outgoing:
    """One hand-over on its way out. `frames` is appended by the engine thread and popped by the KV thread."""

    offer: Offer
    request_id: str
    peer: str
    lease_s: float
    frames: deque[tuple[int, int, bytes]] = field(default_factory=deque)  # (first block, end block, encoded)
    staged_bytes: int = 0
    unannounced_bytes: int = 0  # staged since the KV thread was last woken
    complete: bool = False  # the engine put the last frame
    completed_s: float = 0.0  # when it did
    sent_before_complete: int = 0  # bytes that had left by then: the part hidden behind the computation
    num_bytes: int = 0  # sent in all
    problem: KVTransferError | None = None
    ended: bool = False  # nothing is staged any more; changed under the sender's lock
    first_needed: int = 0  # blocks before it are on the decode side already
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Sender:
    """Streams hand-overs out, at most `staging_bytes` of them waiting at any time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peers: Peers,
        *,
        ledger: LeaseLedger,
        staging_bytes: int,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self._loop = loop
        self._peers = peers
        self._ledger = ledger
        self._staging_bytes = staging_bytes
        self._group_bytes = group_bytes
        self._lock = threading.Lock()
        self._staged = 0
        self._outgoing: dict[str, _Outgoing] = {}  # all and only unfinished sends, by transfer id
        self.counts = {"sent": 0, "declined": 0, "failed": 0}
        self.bytes_sent = 0
        self.overlap = Overlap()

    @property
    def staged_bytes(self) -> int:
        """Bytes copied out of the cache and not yet sent or dropped."""
        return self._staged

    # Engine thread

    def open(self, offer: Offer, *, request_id: str, peer: str, lease_s: float) -> None:
        """Start a hand-over: the offer goes out while the first layer is still being computed.

        One that is open already goes on as it is: a prompt computed again after a preemption has the same blocks.
        """
        if offer.transfer_id in self._outgoing:
            logger.warning("hand-over %s is under way already", offer.transfer_id)
            return
        outgoing = _Outgoing(offer, request_id, peer, lease_s)
        self._outgoing[offer.transfer_id] = outgoing
        self._loop.call_soon_threadsafe(self._start, outgoing)

    def wants(self, transfer_id: str, first_block: int, num_blocks: int) -> int | None:
        """Say from which block of a range on bytes are wanted, or None when none are."""
        outgoing = self._outgoing.get(transfer_id)
        if outgoing is None or outgoing.problem is not None:
            return None
        wanted = max(first_block, outgoing.first_needed)
        return wanted if wanted < first_block + num_blocks else None

    def put(self, transfer_id: str, first_block: int, end_block: int, frame: bytes) -> None:
        """Stage one encoded frame of blocks first_block..end_block - 1; gives up at the staging bound."""
        outgoing = self._outgoing.get(transfer_id)
        if outgoing is None or outgoing.problem is not None:
            return
        with self._lock:
            if outgoing.ended:  # since the look above
                return
            full = self._staged + len(frame) > self._staging_bytes
            if not full:
                self._staged += len(frame)
                outgoing.staged_bytes += len(frame)
                outgoing.frames.append((first_block, end_block, frame))
        if full:
            outgoing.problem = StagingFull(f"more than {self._staging_bytes} bytes of KV wait to be sent")
        else:
            outgoing.unannounced_bytes += len(frame)
        if full or outgoing.unannounced_bytes >= self._group_bytes:
            outgoing.unannounced_bytes = 0
            self._loop.call_soon_threadsafe(outgoing.wake.set)

    def finish(self, transfer_id: str) -> None:
        """Note that the last frame of a hand-over was put."""
        outgoing = self._outgoing.get(transfer_id)
        if outgoing is not None:
            outgoing.completed_s = time.monotonic()
            outgoing.complete = True
            self._loop.call_soon_threadsafe(outgoing.wake.set)

    def abort(self, transfer_id: str, reason: str) -> None:
        """Give a hand-over up; from any thread."""
        outgoing = self._outgoing.get(transfer_id)
        if outgoing is not None:
            outgoing.problem = outgoing.problem or TransferAborted(reason)
            self._loop.call_soon_threadsafe(outgoing.wake.set)

    # KV thread

    async def close(self) -> None:
        """Give up what is still open, and wait until it is."""
        tasks = [outgoing.task for outgoing in self._outgoing.values() if outgoing.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, outgoing: _Outgoing) -> None:
        offer = outgoing.offer
        self._ledger.grant(
            Side.SEND,
            offer.transfer_id,
            owner=outgoing.request_id,
            num_blocks=offer.num_blocks,
            num_bytes=offer.num_blocks * offer.block_bytes * offer.num_layers,
            lease_s=outgoing.lease_s,
        )
        outgoing.task = self._loop.create_task(self._run(outgoing), name=f"kv-send-{offer.transfer_id}")

    async def _run(self, outgoing: _Outgoing) -> None:
        """Own one hand-over from offer to end; every way out releases its lease and its staged bytes."""
        how, outcome = End.RELEASED, "failed"
        transfer_id = outgoing.offer.transfer_id
        try:
            async with asyncio.timeout(outgoing.lease_s):
                await self._send(outgoing)
            outcome = "sent"
        except TimeoutError:
            how = End.EXPIRED
            logger.warning("hand-over %s expired after %g s", transfer_id, outgoing.lease_s)
        except _Declined as exc:
            outcome = "declined"
            logger.info("hand-over %s declined: %s", transfer_id, exc)
        except KVTransferError as exc:
            logger.warning("hand-over %s failed: %s: %s", transfer_id, exc.name, exc)
        finally:
            self.counts[outcome] += 1
            outgoing.problem = outgoing.problem or TransferAborted("the hand-over has ended")
            self._outgoing.pop(transfer_id, None)
            with self._lock:
                outgoing.ended = True
                outgoing.frames.clear()
                self._staged -= outgoing.staged_bytes
                outgoing.staged_bytes = 0
            self._ledger.end(Side.SEND, transfer_id, how)

    async def _send(self, outgoing: _Outgoing) -> None:
        stream = self._peers.connect(outgoing.peer, outgoing.lease_s)
        granted = False
        try:
            await stream.write(offer_frame(outgoing.offer))
            outgoing.first_needed = _check_reply(await self._reply(outgoing, stream), Kind.GRANT)
            granted = True
            # The decode side may end the hand-over at any time, so its last word is awaited from here on.
            verdict = asyncio.ensure_future(stream.read())
            verdict.add_done_callback(lambda _: outgoing.wake.set())
            try:
                num_frames = 0
                async for message, frames in self._messages(outgoing, verdict):
                    await stream.write(message)
                    num_frames += frames
                if not verdict.done():
                    await stream.write(control_frame(Kind.END, count=num_frames))
                _check_reply(await verdict, Kind.LANDED)
                self.overlap.add(outgoing.num_bytes, outgoing.sent_before_complete, outgoing.completed_s)
            finally:
                _give_up(verdict)
        finally:
            stream.close()
            if not granted and outgoing.problem is not None:
                # The offer may not even have left: closing the stream alone might tell the decode side nothing.
                await self._peers.refuse(outgoing.peer, outgoing.offer.transfer_id, str(outgoing.problem))

    async def _reply(self, outgoing: _Outgoing, stream: Stream) -> bytes:
        """Wait for the answer to the offer. Raises what made the engine give the hand-over up meanwhile."""
        reply = asyncio.ensure_future(stream.read())
        reply.add_done_callback(lambda _: outgoing.wake.set())
        try:
            while not reply.done():
                await outgoing.wake.wait()
                outgoing.wake.clear()
                if outgoing.problem is not None:
                    raise outgoing.problem
            return reply.result()
        finally:
            _give_up(reply)

    async def _messages(self, outgoing: _Outgoing, verdict: asyncio.Future[bytes]) -> AsyncIterator[tuple[bytes, int]]:
        """Yield what is staged as messages of about _MESSAGE_BYTES with their number of frames.

        Ends after the last frame, or when the decode side has spoken its verdict.
        """
        while not verdict.done():
            outgoing.wake.clear()
            if outgoing.problem is not None:
                raise outgoing.problem
            complete = outgoing.complete  # read before the queue: the engine sets it after the last put
            batch, staged_bytes = _take_batch(outgoing)
            if batch:
                yield batch[0] if len(batch) == 1 else b"".join(batch), len(batch)
                self._note_sent(outgoing, sum(map(len, batch)))
            with self._lock:
                self._staged -= staged_bytes
                outgoing.staged_bytes -= staged_bytes
            if not staged_bytes:
                if complete:
                    return
                if not verdict.done():
                    await outgoing.wake.wait()

    def _note_sent(self, outgoing: _Outgoing, num_bytes: int) -> None:
        self.bytes_sent += num_bytes
        outgoing.num_bytes += num_bytes
        if not outgoing.complete:
            outgoing.sent_before_complete = outgoing.num_bytes


def _take_batch(outgoing: _Outgoing) -> tuple[list[bytes], int]:
    """Take staged frames for about one message; return what of them the decode side needs, and the bytes taken."""
    batch: list[bytes] = []
    size = taken = 0
    while outgoing.frames and size < _MESSAGE_BYTES:
        first_block, end_block, frame = outgoing.frames.popleft()
        taken += len(frame)
        if end_block <= outgoing.first_needed:
            continue
        if (known := outgoing.first_needed - first_block) > 0:  # staged before the grant came
            frame = without_first_blocks(frame, transfer_seed(outgoing.offer.transfer_id), known)
        batch.append(frame)
        size += len(frame)
    return batch, taken


def _give_up(reading: asyncio.Future[bytes]) -> None:
    """Stop waiting for a message; an error that has come instead is no longer of interest, but must be taken."""
    if not reading.cancel() and not reading.cancelled():
        reading.exception()


class _Declined(Exception):
    """The decode side needs nothing: its request ended, or has the whole prompt cached."""


def _check_reply(message: bytes, wanted: Kind) -> int:
    """Return `first_block` of the wanted reply; raise what the peer reports instead."""
    for frame in read_frames(message):
        if frame.kind is wanted:
            return frame.first_block
        if frame.kind in (Kind.REFUSED, Kind.FAILED):
            problem = read_problem(frame)
            text = f"the decode side says {problem.error}: {problem.message}"
            if problem.error == PeerMismatch.name:
                raise PeerMismatch(text)
            if frame.kind is Kind.REFUSED and problem.error == TransferAborted.name:
                raise _Declined(text)
            raise TransferAborted(text)
    raise TransferTimeout("the decode side answered out of turn")
