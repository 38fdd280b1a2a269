"""Two kinds of workers as the lease protocol knows them: a real sender or receiver with a small cache, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kv_transfer.block_io import BlockIO
from kv_transfer.frames import blocks_header, transfer_seed
from kv_transfer.ledger import LeaseLedger
from kv_transfer.receiver import Receiver
from kv_transfer.sender import Sender
from kv_transfer.staging import CHUNK_BYTES, StagingPool
from tests.support.kv_network import Network, StillLoop

LAYERS, BLOCKS, SHAPE = 2, 24, (2, 4)
WORKERS = ("prefill-0", "prefill-1")
WAIT_S = 5.0  # of an offer for its request
FINGERPRINT = "fp"


def cache_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer.{i}": torch.randint(0, 255, (BLOCKS, *SHAPE), generator=generator, dtype=torch.uint8)
        for i in range(LAYERS)
    }


@dataclass
class Transfer:
    """One hand-over as the engines know it."""

    name: str
    worker: str
    source: list[int]
    next_layer: int = 0
    target: list[int] = field(default_factory=list)  # empty: the decode side has not expected it
    is_offered: bool = False


class Prefill:
    """One prefill worker in one epoch."""

    def __init__(
        self, loop: StillLoop, network: Network, name: str, epoch: int, control: list[tuple[str, str]]
    ) -> None:
        self.name, self.epoch = name, epoch
        self.io = BlockIO(cache_of(WORKERS.index(name)))
        self.ledger = LeaseLedger(loop.time)
        self.pool = StagingPool(6 * CHUNK_BYTES)

        async def withdraw(peer: str, transfer_id: str, reason: str) -> None:
            control.append((transfer_id, reason))

        self.sender = Sender(loop, network, withdraw, ledger=self.ledger, pool=self.pool)

    def stage(self, transfer: Transfer) -> None:
        """Copy the next layer out, as kv_transfer.endpoint does."""
        layer, name = transfer.next_layer, transfer.name
        transfer.next_layer += 1
        segment = self.sender.take(name, len(transfer.source) * self.io.block_bytes)
        if segment is not None:
            self.io.gather_into(layer, transfer.source, segment.view)
            header = blocks_header(transfer_seed(name), layer, 0, len(transfer.source), segment.view)
            self.sender.put(name, segment, layer=layer, first_block=0, num_blocks=len(transfer.source), header=header)
        if transfer.next_layer == LAYERS:
            self.sender.finish(name)


class Decode:
    """The decode worker in one of its lives."""

    def __init__(self, loop: StillLoop, network: Network) -> None:
        self.cache = cache_of(99)
        self.io = BlockIO(self.cache)
        self.ledger = LeaseLedger(loop.time)
        self.receiver = Receiver(self.io, fingerprint=FINGERPRINT, ledger=self.ledger, wait_s=WAIT_S, ack_bytes=1)
        self.free = list(range(BLOCKS))
        self.open: dict[str, Transfer] = {}  # expected and not reported, by request
        self.reported: dict[int, bytes] = {}  # what free blocks held when they were reported
        self.epochs: dict[str, int] = {}  # the latest of each worker that an offer was read of
        network.serve = self.receiver.serve

    def block(self, block_id: int) -> bytes:
        return b"".join(tensor[block_id].numpy().tobytes() for tensor in self.cache.values())
