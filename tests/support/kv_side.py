"""One KV endpoint with a small cache of random bytes, driven by a test as the engine thread would drive it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from kv_transfer.endpoint import KVEndpoint
from kv_transfer.frames import Offer
from kv_transfer.plan import ReceiveOpen, ReceiveParams

LAYERS, BLOCKS, SHAPE = 3, 16, (2, 4, 8)
BLOCK_BYTES = math.prod(SHAPE)
WAIT_S = 30.0


@dataclass
class Side:
    """One endpoint with its cache, driven as the engine thread would."""

    endpoint: KVEndpoint
    cache: dict[str, torch.Tensor]
    address: str
    finished: set[str] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)

    def offer(
        self,
        peer: str,
        transfer_id: str,
        num_blocks: int,
        *,
        digest: str = "d",
        lease_s: float = 30.0,
        due_s: float | None = None,
    ) -> None:
        io = self.endpoint.io
        offer = Offer(transfer_id, "p", 1, self.endpoint.fingerprint, digest, num_blocks, io.num_layers, io.block_bytes)
        self.endpoint.sender.open(offer, request_id=f"req-{transfer_id}", peer=peer, lease_s=lease_s, due_s=due_s)

    def put(self, transfer_id: str, layer: int, first: int, block_ids: list[int], *, stays: bool = False) -> None:
        self.endpoint.stage(transfer_id, layer, first, block_ids, stays=stays)

    def send_all(self, transfer_id: str, block_ids: list[int], *, stays: bool = False) -> None:
        for layer in range(LAYERS):
            self.put(transfer_id, layer, 0, block_ids, stays=stays)
        self.endpoint.sender.finish(transfer_id)

    def expect(
        self, transfer_id: str, block_ids: list[int], *, first: int = 0, digest: str = "d", lease_s: float = 30.0
    ) -> None:
        self.endpoint.expect(
            ReceiveOpen(
                ReceiveParams(transfer_id, lease_s),
                f"req-{transfer_id}",
                digest,
                first,
                first + len(block_ids),
                tuple(block_ids),
            )
        )

    def poll(self) -> None:
        results = self.endpoint.take_results()
        assert not results.finished & self.finished, "a request was reported twice"
        self.finished |= results.finished
        self.bad |= results.bad_blocks

    def wait_finished(self, *transfer_ids: str) -> None:
        wanted = {f"req-{transfer_id}" for transfer_id in transfer_ids}
        wait_until(lambda: (self.poll(), wanted <= self.finished)[1])

    def idle(self) -> bool:
        waiting = self.endpoint.sender.staged_bytes + self.endpoint.sender.cached_bytes
        return not self.endpoint.ledger.open_leases and waiting == 0


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Check a condition that other threads bring about, at the pace of an engine step, within a bound."""
    tick = threading.Event()
    for _ in range(int(timeout_s / 0.002)):
        if condition():
            return
        tick.wait(0.002)
    raise AssertionError("the condition did not come true in time")


MakeSide = Callable[..., Side]
