"""The lease protocol as a state machine: a real receiver and two real senders, with everything in between that a
network and restarts can do to them.

Invariants, after each step: granted = held + released + expired, in blocks and bytes, on both sides; what the decode
side holds are the blocks of exactly the requests that have not been reported; no block changes once it was reported;
what was reported as landed is what the prefill side had; staging memory is held by open hand-overs only. At the end
every request was reported exactly once, and nothing is held.
"""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.errors import PeerMismatch
from kv_transfer.frames import (
    Kind,
    Offer,
    offer_frame,
    read_control,
    read_problem,
)
from kv_transfer.plan import ReceiveOpen, ReceiveParams
from tests.support.kv_network import MemoryOutgoing, Network, StillLoop, Stream
from tests.support.kv_workers import BLOCKS, FINGERPRINT, LAYERS, WORKERS, Decode, Prefill, Transfer, cache_of

SELDOM = st.sampled_from([False, False, False, True])


class LeaseProtocol(RuleBasedStateMachine):
    """Two prefill workers hand over to one decode worker."""

    @initialize()
    def start(self) -> None:
        self.loop = StillLoop()
        self.network = Network(self.loop)
        self.control: list[tuple[str, str]] = []  # withdrawals under way
        self.transfers: list[Transfer] = []
        self.prefills = {name: Prefill(self.loop, self.network, name, 1, self.control) for name in WORKERS}
        self.decode = Decode(self.loop, self.network)
        self.past: list[Prefill] = []  # their staging memory is still read by what is under way

    # The engines

    @rule(worker=st.sampled_from(WORKERS), blocks=st.integers(1, 4), seed=st.integers(0, 99))
    def ticket(self, worker: str, blocks: int, seed: int) -> None:
        """Have the router make a hand-over."""
        source = [(seed + 5 * i) % BLOCKS for i in range(blocks)]
        self.transfers.append(Transfer(f"t{len(self.transfers)}", worker, source))

    @rule(
        worker=st.sampled_from(WORKERS),
        blocks=st.integers(1, 4),
        layers=st.sampled_from([0, 1, LAYERS, LAYERS]),
        lease_s=st.floats(0.5, 8),
        frames=st.sampled_from([0, 1, 2, 3, 9, 9]),
        is_slow=SELDOM,
        is_spoilt=SELDOM,
    )
    def hand_over(
        self, worker: str, blocks: int, layers: int, lease_s: float, frames: int, is_slow: bool, is_spoilt: bool
    ) -> None:
        """Let both engines do their part as they should, up to some point."""
        self.ticket(worker, blocks, len(self.transfers))
        transfer = self.transfers[-1]
        self.network.permits, self.network.is_slow = 1 if is_spoilt else frames, is_slow
        self._expect(transfer, lease_s, "d")
        self._open(transfer, lease_s)
        for _ in range(layers):
            self.prefills[worker].stage(transfer)
        self.loop.rest()
        if is_spoilt and (frames_of_it := self.network.streams[-1].frames):
            frames_of_it[0] = _spoilt(*frames_of_it[0])
            self._let_through(self.network.streams[-1], frames)

    @precondition(lambda self: self.transfers)
    @rule(data=st.data(), lease_s=st.floats(0.5, 8))
    def prefill_opens(self, data: st.DataObject, lease_s: float) -> None:
        self._open(self._one(data), lease_s)

    def _open(self, transfer: Transfer, lease_s: float) -> None:
        prefill = self.prefills[transfer.worker]
        transfer.is_offered, transfer.next_layer = True, 0
        count, io = len(transfer.source), prefill.io
        offer = Offer(
            transfer.name, prefill.name, prefill.epoch, FINGERPRINT, "d", count, io.num_layers, io.block_bytes
        )
        if transfer.name not in prefill.sender._open:
            prefill.sender.open(offer, request_id=f"p-{transfer.name}", peer="decode", lease_s=lease_s)
        else:
            transfer.next_layer = LAYERS  # under way: nothing is staged again
        self.loop.rest()

    @precondition(lambda self: self.transfers)
    @rule(data=st.data(), layers=st.integers(1, LAYERS))
    def prefill_computes(self, data: st.DataObject, layers: int) -> None:
        transfer = self._one(data)
        for _ in range(layers):
            if transfer.is_offered and transfer.next_layer < LAYERS:
                self.prefills[transfer.worker].stage(transfer)
        self.loop.rest()

    @precondition(lambda self: self.transfers)
    @rule(data=st.data(), lease_s=st.floats(0.5, 8), digest=st.sampled_from("ddde"))
    def decode_expects(self, data: st.DataObject, lease_s: float, digest: str) -> None:
        self._expect(self._one(data), lease_s, digest)

    def _expect(self, transfer: Transfer, lease_s: float, digest: str) -> None:
        decode = self.decode
        request = f"d-{transfer.name}"
        if transfer.target or len(decode.free) < len(transfer.source):
            return
        transfer.target = [decode.free.pop() for _ in transfer.source]
        for block_id in transfer.target:
            decode.reported.pop(block_id, None)
        decode.open[request] = transfer
        count = len(transfer.source)
        params = ReceiveParams(transfer.name, lease_s)
        opened = ReceiveOpen(params, request, digest, 0, count, tuple(transfer.target))
        self.loop.do(decode.receiver.expect, opened)

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def decode_request_ends(self, data: st.DataObject) -> None:
        self.loop.do(self.decode.receiver.cancel, self._one(data).name)

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def prefill_request_ends(self, data: st.DataObject) -> None:
        transfer = self._one(data)
        self.loop.do(self.prefills[transfer.worker].sender.abort, transfer.name, "the prefill request ended early")

    # The network

    @precondition(lambda self: self.network.streams)
    @rule(data=st.data(), count=st.integers(1, 9))
    def frames_arrive(self, data: st.DataObject, count: int) -> None:
        self._let_through(self._stream(data), count)

    @precondition(lambda self: self.network.streams)
    @rule(data=st.data(), is_slow=st.booleans())
    def payloads_arrive_slowly(self, data: st.DataObject, is_slow: bool) -> None:
        stream = self._stream(data)
        stream.is_slow = is_slow
        stream.wake()
        self.loop.rest()

    @precondition(lambda self: any(stream.frames for stream in self.network.streams))
    @rule(data=st.data(), how=st.sampled_from(["double", "lose", "swap", "spoil", "misplace"]))
    def frames_are_tampered_with(self, data: st.DataObject, how: str) -> None:
        """Do something to a frame that is under way, and let through what follows."""
        stream = data.draw(st.sampled_from([stream for stream in self.network.streams if stream.frames]))
        frames = stream.frames
        index = data.draw(st.integers(0, len(frames) - 1))
        if how == "double":
            frames.insert(index, frames[index])
        elif how == "lose":
            del frames[index]
        elif how == "swap":
            frames.rotate(1)
        elif how == "misplace":
            data.draw(st.sampled_from(self.network.streams)).frames.append(frames[index])
        else:
            frames[index] = _spoilt(*frames[index])
        self._let_through(stream, len(frames))

    @precondition(lambda self: self.network.streams)
    @rule(data=st.data(), is_so=SELDOM)
    def stream_breaks(self, data: st.DataObject, is_so: bool) -> None:
        if not is_so:
            return
        stream = self._stream(data)
        stream.is_broken = True
        stream.wake()
        self.loop.rest()

    @precondition(lambda self: self.control)
    @rule(data=st.data(), again=st.booleans())
    def withdrawal_arrives(self, data: st.DataObject, again: bool) -> None:
        """Deliver any of them, in any order, perhaps twice."""
        index = data.draw(st.integers(0, len(self.control) - 1))
        transfer_id, reason = self.control[index] if again else self.control.pop(index)
        self.loop.do(self.decode.receiver.refuse, transfer_id, reason)

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.6, 2.0, 9.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.advance(seconds)

    # Restarts

    @rule(worker=st.sampled_from(WORKERS), is_so=SELDOM)
    def prefill_restarts(self, worker: str, is_so: bool) -> None:
        if not is_so:
            return
        before = self.prefills[worker]
        self.loop.run_until_complete(before.sender.close())
        assert before.ledger.blocks().held == before.pool.used_bytes == 0
        self.past.append(before)
        self.prefills[worker] = Prefill(self.loop, self.network, worker, before.epoch + 1, self.control)
        for transfer in self.transfers:
            if transfer.worker == worker:
                transfer.is_offered = False

    @rule(is_so=SELDOM)
    def decode_restarts(self, is_so: bool) -> None:
        if not is_so:
            return
        for stream in self.network.streams:
            stream.is_broken = True
            stream.wake()
        self.loop.advance(10.0)  # the router learns of the death, and the leases of before are over
        assert self.decode.ledger.blocks().held == 0
        self.decode = Decode(self.loop, self.network)
        for transfer in self.transfers:
            transfer.target = []

    @precondition(lambda self: self.past and self.transfers)
    @rule(data=st.data())
    def an_earlier_life_offers(self, data: st.DataObject) -> None:
        """A process that was taken for dead speaks, after the one that followed it has."""
        ghost, transfer = data.draw(st.sampled_from(self.past)), self._one(data)
        follower = self.prefills[ghost.name]
        refused = []
        for prefill in (follower, ghost):
            stream = self.loop.run_until_complete(self.network.connect())
            stream.permits = 1 << 20
            outgoing = MemoryOutgoing(stream)
            count, io = len(transfer.source), ghost.io
            offer = Offer(
                f"{transfer.name}-g", ghost.name, prefill.epoch, FINGERPRINT, "d", count, LAYERS, io.block_bytes
            )
            self.loop.run_until_complete(outgoing.write(offer_frame(offer)))
            self.loop.rest()
            if stream._answers:
                header, payload = read_control(stream._answers[0])
                refused.append((header.kind, read_problem(payload).error))
            if prefill is follower:
                outgoing.close()
                self.loop.rest()
        assert refused[-1:] == [(Kind.REFUSED, PeerMismatch.name)]

    # What holds after each step

    @invariant()
    def holds(self) -> None:
        assert self.loop.errors == []
        self._take_reports()
        decode, prefills = self.decode, self.prefills.values()
        for ledger in (decode.ledger, *(prefill.ledger for prefill in prefills)):
            assert ledger.blocks().imbalance == ledger.bytes().imbalance == ledger.imbalances == 0
        held = sum(len(transfer.target) for transfer in decode.open.values())
        assert decode.ledger.blocks().held == held
        assert decode.ledger.bytes().held == held * LAYERS * decode.io.block_bytes
        for block_id, content in decode.reported.items():
            assert decode.block(block_id) == content, "written after the end of its lease"
        for prefill in prefills:
            assert prefill.sender._open or prefill.pool.used_bytes == 0

    def _take_reports(self) -> None:
        """Take what was reported, as an engine step does."""
        decode = self.decode
        results = decode.receiver.take_results()
        assert results.finished <= decode.open.keys(), "reported twice, or never asked for"
        landed = decode.receiver._memory._landed
        for request in sorted(results.finished):
            transfer = decode.open.pop(request)
            for position, block_id in enumerate(transfer.target):
                decode.reported[block_id] = decode.block(block_id)
                if transfer.name in landed:
                    assert block_id not in results.bad_blocks
                    assert decode.reported[block_id] == self._sent(transfer, position)
                decode.free.insert(0, block_id)

    def _sent(self, transfer: Transfer, position: int) -> bytes:
        cache = cache_of(WORKERS.index(transfer.worker))
        return b"".join(tensor[transfer.source[position]].numpy().tobytes() for tensor in cache.values())

    def teardown(self) -> None:
        """Let everything through, and time pass: all ends, once."""
        if not hasattr(self, "loop"):
            return
        try:
            for stream in self.network.streams:
                stream.permits, stream.is_slow = 1 << 20, False
                stream.wake()
            for _ in range(4):
                self.loop.advance(10.0)
                for stream in self.network.streams:
                    stream.permits = 1 << 20
                    stream.wake()
            self.loop.rest()
            self.holds()
            assert not self.decode.open
            for prefill in self.prefills.values():
                assert not prefill.sender._open
                assert prefill.ledger.blocks().held == 0
            assert not self.network.serving
            assert not asyncio.all_tasks(self.loop)
        finally:
            for prefill in (*self.prefills.values(), *self.past):
                prefill.pool.close()
            self.loop.close()

    # What a rule does, and picks

    def _let_through(self, stream: Stream, count: int) -> None:
        stream.permits += count
        stream.wake()
        self.loop.rest()

    def _one(self, data: st.DataObject) -> Transfer:
        return data.draw(st.sampled_from(self.transfers))

    def _stream(self, data: st.DataObject) -> Stream:
        return data.draw(st.sampled_from(self.network.streams))


def _spoilt(header: bytes, payload: memoryview) -> tuple[bytes, memoryview]:
    """Flip a bit of a frame's last byte."""
    data = bytearray(payload)
    data[-1:] = bytes(byte ^ 1 for byte in data[-1:])
    return header, memoryview(data)


TestLeaseProtocol = LeaseProtocol.TestCase
TestLeaseProtocol.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
