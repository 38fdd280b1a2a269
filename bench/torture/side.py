"""One engine rank as a hand-over sees it: a cache, a real KV endpoint, and the calls an engine thread makes.

Owns the endpoint's life: it is started, killed with whatever is under way, and started again under a later epoch.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.torture.engine import BlockPool
from bench.torture.faulty import FaultyTransport, Odds
from kv_transfer.block_io import BlockIO
from kv_transfer.endpoint import EndpointConfig, KVEndpoint
from kv_transfer.frames import Offer
from kv_transfer.plan import ReceiveOpen, ReceiveParams
from kv_transfer.quarantine import Quarantine

TOKEN: Final = "torture"
OFFER_S: Final = 3.0  # how long an offer may wait for its request
VERIFY_SHARE: Final = 0.25  # of hand-overs, digested end to end: a digest that does not match would be a fault
STAGING_BYTES: Final = 4 << 20  # 64 chunks: eight hand-overs of up to eight frames each fill it now and then


class Side:
    """A prefill or decode engine; its methods are called by one thread, as an engine's are."""

    def __init__(self, name: str, run_dir: Path, *, transport: str, odds: Odds, seed: int) -> None:
        self.name = name
        self.epoch = 0
        self.faults: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # hand-overs that landed elsewhere, by transport
        self._run_dir = run_dir
        self._transport = transport
        self._odds = odds
        self._chance = random.Random(seed)
        self._start()

    def _start(self) -> None:
        self.epoch += 1
        self.pool = BlockPool()
        self.finished: set[str] = set()  # requests whose receive has ended, not yet seen to
        self.bad: set[int] = set()  # blocks that the engine would compute, likewise
        config = EndpointConfig(
            worker_id=self.name,
            epoch=self.epoch,
            host="127.0.0.1",
            port=0,
            endpoint_file=str(self._run_dir / f"{self.name}.json"),
            fingerprint="torture",
            token=TOKEN,
            lease_s=OFFER_S,
            staging_bytes=STAGING_BYTES,
            group_bytes=self._chance.choice((0, 1 << 12, 1 << 20)),  # a layer a frame, some layers, all of them
            ack_bytes=8192,
            transport=self._transport,
            verify_share=VERIFY_SHARE,
        )
        self.endpoint = KVEndpoint(
            config,
            BlockIO(self.pool.cache),
            wrap=lambda inner: FaultyTransport(inner, self._odds, self._chance, self.faults),
        )
        # Here wrong frames are the rule, and every pair would soon be left out.
        self.endpoint.receiver.quarantine = Quarantine(time.monotonic, mismatches=1 << 30)
        self.address = self.endpoint.start()

    def kill(self) -> None:
        """Die with whatever is under way, and come back as another process would: elsewhere, empty, one epoch later."""
        self.close()
        self._start()

    def close(self) -> None:
        """End with whatever is under way."""
        self.endpoint.close()
        self.endpoint.io.close()

    def offer(self, peer: Side, transfer_id: str, digest: str, num_blocks: int, lease_s: float) -> None:
        """Begin to send."""
        io = self.endpoint.io
        offer = Offer(
            transfer_id,
            self.name,
            self.epoch,
            self.endpoint.fingerprint,
            digest,
            num_blocks,
            io.num_layers,
            io.block_bytes,
        )
        self.endpoint.sender.open(offer, request_id=f"{transfer_id}-p", peer=peer.address, lease_s=lease_s)

    def stage(self, transfer_id: str, layer: int, first_block: int, block_ids: Sequence[int]) -> None:
        """Copy one layer of some blocks out, or leave them where they are for the peer to read."""
        self.endpoint.stage(transfer_id, layer, first_block, block_ids, stays=True)
        if self._chance.random() < 0.25:
            self.endpoint.end_step()

    def finish(self, transfer_id: str) -> None:
        """Note that all is staged."""
        self.endpoint.finish(transfer_id)

    def abort(self, transfer_id: str) -> None:
        """End the prefill request early."""
        self.endpoint.sender.abort(transfer_id, "torture")
        self.endpoint.end_step()

    def let_go(self, transfer_id: str) -> bool:
        """Whether nobody reads the blocks of a hand-over any more."""
        return self.endpoint.sender.let_go(transfer_id)

    def call_back(self, transfer_id: str) -> None:
        """Take the blocks of a hand-over back, whoever reads them."""
        self.endpoint.end_step()
        self.endpoint.sender.call_back(transfer_id)

    def expect(self, transfer_id: str, digest: str, first: int, block_ids: Sequence[int], lease_s: float) -> None:
        """Reserve blocks for a hand-over."""
        params = ReceiveParams(transfer_id, lease_s)
        opened = ReceiveOpen(params, f"{transfer_id}-d", digest, first, first + len(block_ids), tuple(block_ids))
        self.endpoint.expect(opened)

    def cancel(self, transfer_id: str) -> None:
        """End the decode request early, whether it was ever scheduled or not."""
        self.endpoint.cancel_receive(transfer_id)

    def poll(self) -> int:
        """Take what ended; return how many requests were reported a second time."""
        results = self.endpoint.take_results()
        twice = len(results.finished & self.finished)
        self.finished |= results.finished
        self.bad |= results.bad_blocks
        return twice

    def is_idle(self) -> bool:
        """Whether nothing is held."""
        sender = self.endpoint.sender
        return not self.endpoint.ledger.open_leases and not sender.staged_bytes + sender.cached_bytes

    def count_sent(self) -> None:
        """Take over what this endpoint sent, by transport; once, at its end."""
        counts = self.endpoint.stats()["transports"]
        assert isinstance(counts, dict)
        self.sent.update({name: count["handovers"] for name, count in counts.items()})
