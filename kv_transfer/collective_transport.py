"""KV by torch's collectives: NCCL from GPU to GPU, and the same code by gloo from host to host.

A lane is a control link and a group of two ranks. One stream has a lane at a time; a lane whose stream ended in order
serves the next one, for a group is dear to make, and one whose stream broke is given up with its group. Frames travel
on the link, a header each for BLOCKS, whose payload both ends then move through the group: both see the same order.

The group is made through a store that lives on the link, so that only who knows the cluster token has a part in it. The
sockets that gloo and NCCL then open for the bytes ask nobody for a token: for networks that are trusted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

import torch

from core.errors import CorruptFrame, KVTransferError, TransferAborted, TransferTimeout
from kv_transfer.collective_lane import Lane, Tag
from kv_transfer.communicator import check_backend
from kv_transfer.control_link import Link, Listener, dial
from kv_transfer.device_blocks import SUM_BYTES
from kv_transfer.frames import HEADER_BYTES, Header, Kind, read_header
from kv_transfer.transport import Outgoing, Serve, StagedFrame

logger = logging.getLogger(__name__)
NCCL: Final = "nccl"
STALL_TIMEOUT_S: Final = 30.0  # for one payload to pass
_MAX_IDLE: Final = 4  # lanes kept for each peer
_IDLE_S: Final = 300.0  # how long: a group of NCCL holds some memory of the GPU


class _Outgoing:
    """The sender's end of a stream on a lane; see kv_transfer.transport.Outgoing."""

    def __init__(self, lane: Lane, owner: CollectiveTransport, address: str) -> None:
        self._lane = lane
        self._owner = owner
        self._address = address
        self._is_closed = False

    async def write(self, message: bytes) -> None:
        self._check_open()
        await self._lane.link.send(Tag.FRAME, message)

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        for frame in frames:
            self._check_open()
            self._lane.is_moving = True  # the peer waits in the group from here on, whatever comes between
            buffer, group = frame.device, self._lane.group
            if buffer is None:
                await self._lane.link.send(Tag.FRAME, frame.header)
                await self._lane.moving(group.send(frame.payload))
            else:
                await self._lane.link.send(Tag.DEVICE_FRAME, frame.header)
                await self._lane.moving(group.send(buffer.tensor, buffer.ready))

    async def read(self) -> bytes:
        self._check_open()
        return (await self._lane.frame())[1]

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._lane.is_busy:
                self._lane.give_up()
            self._owner.release(self._lane, self._address)

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransferAborted("the stream is closed")


class CollectiveIncoming:
    """The receiver's end of a stream on a lane; see kv_transfer.transport.DeviceIncoming."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._frame = b""
        self.is_on_device = False
        self.is_closed = False

    async def header(self) -> Header:
        if self.is_closed:
            raise TransferAborted("the stream is closed")
        tag, self._frame = await self._lane.frame()
        header = read_header(self._frame[:HEADER_BYTES])
        self.is_on_device = tag is Tag.DEVICE_FRAME
        if header.kind is Kind.BLOCKS:
            self._lane.is_moving = True
        elif self.is_on_device or header.size != len(self._frame) - HEADER_BYTES:
            raise CorruptFrame(f"a {header.kind.name} frame is cut")
        return header

    async def payload(self, header: Header) -> bytes:
        return self._frame[HEADER_BYTES:]

    async def land(self, header: Header, rows: Sequence[memoryview]) -> None:
        """Write the payload to `rows`; a landing that was given up writes to none of them."""
        if self.is_on_device:
            raise CorruptFrame("a frame for the memory of a device came to an engine that has none")
        buffer = await self._lane.moving(self._lane.group.receive(header.size, lambda tensor: tensor.cpu()))
        source = memoryview(buffer.numpy())
        start = 0
        for row in rows:
            row.cast("B")[:] = source[start : start + row.nbytes]
            start += row.nbytes

    async def land_on_device(self, header: Header, scatter: Callable[[torch.Tensor], None]) -> None:
        """See kv_transfer.transport.DeviceIncoming."""
        gate = threading.Lock()  # held while the cache is written, by a thread that nobody can cancel
        given_up = False

        def land(tensor: torch.Tensor) -> None:
            with gate:
                if given_up:
                    raise TransferAborted("the landing was given up")
                scatter(tensor)

        try:
            await self._lane.moving(self._lane.group.receive(header.size + SUM_BYTES, land))
        except BaseException:
            given_up = True
            with gate:  # at most as long as one copy within the device
                pass
            raise

    async def write(self, message: bytes) -> None:
        if self.is_closed:
            raise TransferAborted("the stream is closed")
        await self._lane.link.send(Tag.FRAME, message)

    def close(self) -> None:
        """End the stream; the lane comes to rest once its serving task sees that."""
        if not self.is_closed:
            self.is_closed = True
            if self._lane.is_busy:
                self._lane.give_up()


class CollectiveTransport:
    """Streams over lanes; implements kv_transfer.transport.Transport."""

    def __init__(
        self, backend: str, token: str, *, device: str = "cpu", stall_timeout_s: float = STALL_TIMEOUT_S
    ) -> None:
        """`backend` is "nccl", with `device` a CUDA device, or "gloo"."""
        self.name = backend
        self._token = token
        self._device = device
        self._stall_timeout_s = stall_timeout_s
        self._listener: Listener | None = None
        self._is_closed = False
        self._lanes: set[Lane] = set()  # all and only lanes that may be alive
        self._idle: dict[str, list[Lane]] = {}  # peer -> lanes at rest, of `_lanes`
        self._resting: set[asyncio.Task[None]] = set()  # all and only lanes coming to rest
        self._expiries: dict[Lane, asyncio.TimerHandle] = {}  # all and only those of lanes at rest

    async def listen(self, host: str, serve: Serve) -> str:
        """See kv_transfer.transport.Transport."""
        check_backend(self.name, self._device)

        async def serve_link(link: Link) -> None:
            await self._serve_lane(link, serve)

        self._listener = Listener(self._token, serve_link)
        return await self._listener.start(host)

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        """Open a stream on a lane at rest, or on a new one."""
        if self._is_closed:
            raise TransferAborted("the transport is closed")
        try:
            async with asyncio.timeout(timeout_s):
                lane = await self._idle_lane(address) or await self._new_lane(address, timeout_s)
        except TimeoutError as exc:
            raise TransferTimeout(f"{address} did not answer within {timeout_s:g} s") from exc
        lane.begin()
        return _Outgoing(lane, self, address)

    def release(self, lane: Lane, address: str) -> None:
        """Take a lane back whose stream was closed by our end."""
        task = asyncio.create_task(self._rest(lane, address), name="kv-lane-rest")
        self._resting.add(task)
        task.add_done_callback(self._resting.discard)

    async def close(self) -> None:
        """See kv_transfer.transport.Transport."""
        self._is_closed = True
        for lane in list(self._lanes):
            self._drop(lane)
        self._idle.clear()
        resting = list(self._resting)
        await asyncio.gather(*resting, return_exceptions=True)
        if self._listener is not None:
            await self._listener.close()

    async def _idle_lane(self, address: str) -> Lane | None:
        """Take a lane whose peer still answers."""
        idle = self._idle.get(address, [])
        while idle:
            lane = idle.pop()
            self._expiries.pop(lane).cancel()
            try:
                await self._begin(lane)
            except KVTransferError:
                continue
            return lane
        return None

    async def _new_lane(self, address: str, timeout_s: float) -> Lane:
        check_backend(self.name, self._device)
        lane = self._lane(await dial(address, self._token, timeout_s))
        try:
            await lane.join(self.name, 1)
            await self._begin(lane)
        except BaseException:
            self._drop(lane)
            raise
        return lane

    async def _begin(self, lane: Lane) -> None:
        try:
            await lane.link.send(Tag.BEGIN)
            tag, _ = await lane.link.receive()
            if tag != Tag.READY:
                raise TransferAborted("the peer did not take the stream")
        except BaseException:
            self._drop(lane)
            raise

    async def _rest(self, lane: Lane, address: str) -> None:
        is_reusable = await lane.rest()
        idle = self._idle.setdefault(address, [])
        if is_reusable and lane in self._lanes and len(idle) < _MAX_IDLE:
            idle.append(lane)
            self._expiries[lane] = asyncio.get_running_loop().call_later(_IDLE_S, self._expire, lane, address)
        else:
            self._drop(lane)

    def _expire(self, lane: Lane, address: str) -> None:
        self._idle[address].remove(lane)
        self._drop(lane)

    async def _serve_lane(self, link: Link, serve: Serve) -> None:
        lane = self._lane(link)
        try:
            await lane.join(self.name, 0)
            is_usable = True
            while is_usable:
                tag, _ = await link.receive()
                if tag != Tag.BEGIN:
                    break
                lane.begin()
                await link.send(Tag.READY)
                incoming = CollectiveIncoming(lane)
                try:
                    await serve(incoming)
                finally:
                    incoming.close()
                is_usable = await lane.rest()
        except KVTransferError as exc:
            logger.debug("a lane from %s ended: %s", link.peer_host, exc)
        finally:
            self._drop(lane)

    def _lane(self, link: Link) -> Lane:
        lane = Lane(link, torch.device(self._device), self._stall_timeout_s)
        self._lanes.add(lane)
        return lane

    def _drop(self, lane: Lane) -> None:
        lane.give_up()
        self._lanes.discard(lane)
        if (expiry := self._expiries.pop(lane, None)) is not None:
            expiry.cancel()
