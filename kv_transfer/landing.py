"""One stream that lands a hand-over: reads frames, writes them to reserved blocks, acknowledges.

Owns what has landed of the hand-over (over all its streams) and the state of the stream that is open. Must not know
leases, requests or who may send: the receiver decides all of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from core.errors import CorruptFrame, TransferAborted
from kv_transfer.block_io import BlockIO
from kv_transfer.frames import Header, Kind, control_frame, place_of, read_problem, verify_blocks, verify_control
from kv_transfer.transport import DeviceIncoming, Incoming

ACK_BYTES: Final = 4 << 20  # landed bytes of a hand-over that the sender may have to keep; LANDED covers the rest
_LAND_S: Final = 0.5  # how long a frame may still be in landing when its hand-over has ended


@dataclass(frozen=True, slots=True)
class Place:
    """Where a BLOCKS frame goes."""

    layers: range
    block_ids: Sequence[int]  # in the cache, the same in each layer
    mask: int  # a bit for each of the layers
    start: int  # of the blocks among those that are awaited


class Landed:
    """What has landed of one hand-over: a bit for each block and layer, and the number of frames."""

    def __init__(self, io: BlockIO, block_ids: Sequence[int], first_block: int) -> None:
        self._io = io
        self._block_ids = block_ids
        self.first_block = first_block
        self._layers = [0] * len(block_ids)
        self._all = (1 << io.num_layers) - 1
        self.num_frames = 0

    def place(self, header: Header) -> Place:
        """Judge a BLOCKS frame before it lands; say where it goes. Raises CorruptFrame."""
        start = header.first_block - self.first_block
        end = start + header.num_blocks
        if not 0 <= start < end <= len(self._block_ids):
            raise CorruptFrame("a frame points outside the reserved blocks")
        num_layers, rest = divmod(header.size, header.num_blocks * self._io.block_bytes)
        if rest or not num_layers:
            raise CorruptFrame("a frame's size does not match its blocks")
        if header.layer + num_layers > self._io.num_layers:
            raise CorruptFrame("a frame has layers that the model lacks")
        mask = ((1 << num_layers) - 1) << header.layer
        if any(layers & mask for layers in self._layers[start:end]):
            raise CorruptFrame(f"layer {header.layer} of block {header.first_block} or a later one comes twice")
        return Place(range(header.layer, header.layer + num_layers), self._block_ids[start:end], mask, start)

    def add(self, place: Place) -> None:
        """Count a frame whose bytes are verified and in the cache."""
        for index in range(place.start, place.start + len(place.block_ids)):
            self._layers[index] |= place.mask
        self.num_frames += 1

    def incomplete_blocks(self) -> set[int]:
        """Return the blocks that lack a layer."""
        return {self._block_ids[i] for i, layers in enumerate(self._layers) if layers != self._all}

    def forget(self) -> None:
        """Take everything that has landed for wrong."""
        self._layers = [0] * len(self._block_ids)

    def check_complete(self, frames_sent: int) -> None:
        """Raises CorruptFrame unless every block is whole and every frame counted."""
        missing = len(self.incomplete_blocks())
        if missing or frames_sent != self.num_frames:
            raise CorruptFrame(f"{missing} blocks are incomplete; {self.num_frames} of {frames_sent} frames came")


class Stopped(Exception):
    """The stream was told to stop: its hand-over has ended, or goes on elsewhere."""


@dataclass(slots=True)
class Landing:
    """One stream that was granted, or is about to be."""

    incoming: Incoming
    attempt: int
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # it writes nothing any more and holds nothing
    writing: bool = False  # a frame is on its way into the cache
    _stopped: bool = False
    _waiting: asyncio.Timeout | None = None  # set exactly while a header is awaited
    _closing: asyncio.TimerHandle | None = None
    _on_device: DeviceIncoming | None = field(init=False)  # `incoming`, where its payloads may come to a device

    def __post_init__(self) -> None:
        # Asked once for all frames: it takes 77 us.
        self._on_device = self.incoming if isinstance(self.incoming, DeviceIncoming) else None

    def stop(self) -> None:
        """Read no further frame; one that is in landing gets a short time to end. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        loop = asyncio.get_running_loop()
        if self._waiting is not None:
            self._waiting.reschedule(loop.time())
        else:
            self._closing = loop.call_later(_LAND_S, self.incoming.close)

    def leave(self) -> None:
        """Note that the stream does nothing any more."""
        if self._closing is not None:
            self._closing.cancel()
        self.gone.set()

    async def run(
        self,
        first: asyncio.Future[Header],
        landed: Landed,
        io: BlockIO,
        *,
        seed: int,
        ack_bytes: int,
        progress: Callable[[int], None],
    ) -> bytes:
        """Land frames until the last one, beginning with `first`; `progress` hears of the bytes of each.

        Returns the payload of the last one, the sender's digest if it made one.

        Raises Stopped, CorruptFrame, Aborted, or what the transport raises when the stream broke.
        """
        unacknowledged_bytes = 0
        header = await self._wait(first)
        while header.kind is Kind.BLOCKS:
            await self._land(header, landed, io, seed)
            progress(header.size)
            unacknowledged_bytes += header.size
            if unacknowledged_bytes >= ack_bytes and not self._stopped:
                await self.incoming.write(control_frame(Kind.ACK, count=landed.num_frames))
                unacknowledged_bytes = 0
            header = await self._next()
        payload = await self.incoming.payload(header)
        verify_control(header, payload)
        if header.kind is Kind.ABORT:
            problem = read_problem(payload)
            raise Aborted(f"{problem.error}: {problem.message}")
        if header.kind is not Kind.END:
            raise CorruptFrame(f"unexpected {header.kind.name} frame")
        landed.check_complete(header.num_blocks)
        return payload

    async def _land(self, header: Header, landed: Landed, io: BlockIO, seed: int) -> None:
        place = landed.place(header)
        self.writing = True
        try:
            if self._on_device is not None and self._on_device.is_on_device:
                await self._land_on_device(self._on_device, header, place, io, seed)
            else:
                await self._land_on_host(header, place, io, seed)
        finally:
            self.writing = False
        landed.add(place)

    async def _land_on_host(self, header: Header, place: Place, io: BlockIO, seed: int) -> None:
        if io.on_host:
            of_all = io.rows(place.layers, place.block_ids)
            verify_blocks(header, seed, of_all, digest=await self.incoming.land(header, of_all))
            return
        rows = [io.writable(layer, place.block_ids) for layer in place.layers]
        together = [row for of_layer in rows for row in of_layer]
        digest = await self.incoming.land(header, together)
        verify_blocks(header, seed, together, digest=digest)
        for layer, of_layer in zip(place.layers, rows, strict=True):
            io.commit(layer, place.block_ids, of_layer)

    @staticmethod
    async def _land_on_device(incoming: DeviceIncoming, header: Header, place: Place, io: BlockIO, seed: int) -> None:
        device, block_ids = io.device, place.block_ids
        if device is None:
            raise CorruptFrame("a frame for the memory of a device came to an engine that has none")
        if len(place.layers) != 1:
            raise CorruptFrame("a frame for the memory of a device has more than one layer")
        sealed_for = place_of(seed, header.layer, header.first_block)
        await incoming.land_on_device(
            header, lambda tensor: device.scatter(header.layer, block_ids, sealed_for, tensor)
        )

    async def _next(self) -> Header:
        if self._stopped:
            raise Stopped
        try:
            async with asyncio.timeout(None) as self._waiting:
                return await self.incoming.header()
        except TimeoutError as exc:
            raise Stopped from exc
        finally:
            self._waiting = None

    async def _wait(self, first: asyncio.Future[Header]) -> Header:
        if self._stopped:
            raise Stopped
        try:
            async with asyncio.timeout(None) as self._waiting:
                return await first
        except TimeoutError as exc:
            raise Stopped from exc
        finally:
            self._waiting = None


class Aborted(TransferAborted):
    """The sender itself gave the hand-over up."""
