"""One authenticated link and the group of two beside it; serves one stream after another.

Owns both, and knows whether anything is under way in the group, which must be nothing when a stream ends. Must not know
who opens streams or what frames mean.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable
from datetime import timedelta
from typing import Final, TypeVar

import torch

from core.errors import CorruptFrame, TransferAborted, TransferTimeout
from kv_transfer.communicator import Communicator, device_identity
from kv_transfer.control_link import Link
from kv_transfer.frames import HEADER_BYTES, Kind
from kv_transfer.link_store import LinkStore

T = TypeVar("T")
_REST_TIMEOUT_S: Final = 2.0  # for the peer to end its half of a stream, before its lane is given up
_JOIN_TIMEOUT_S: Final = 5.0  # for the peer to come to the group


class Tag(enum.IntEnum):
    """What a message on the link is."""

    MEET = 1  # both, once: backend and device of this end
    ENTRY = 2  # both: an entry of the store through which the group is made
    JOINED = 3  # both, once: the group is made
    BEGIN = 4  # sender -> receiver: a stream begins
    READY = 5  # receiver -> sender: it is served
    FRAME = 6  # a frame; of BLOCKS the header, whose payload is moved through the group
    DEVICE_FRAME = 7  # a header of BLOCKS whose payload comes from device memory, with its sum behind it
    END = 8  # this half of the stream has ended


class Lane:
    """Both ends of a lane see its moves in the same order, for every move is announced on the link."""

    def __init__(self, link: Link, device: torch.device, stall_timeout_s: float) -> None:
        self.link = link
        self.group = Communicator(device, stall_timeout_s)
        self.is_moving = False
        self._device = device
        self._is_read = False
        self._has_ended = False  # the peer's half of the stream in course

    @property
    def is_busy(self) -> bool:
        """Whether a stream that ends in this moment breaks the lane."""
        return self.is_moving or self._is_read

    async def join(self, backend: str, rank: int) -> None:
        """Make the group. Raises TransferAborted or TransferTimeout, and the lane is given up."""
        loop = asyncio.get_running_loop()

        def publish(message: bytes) -> None:
            loop.call_soon_threadsafe(self.link.send_soon, Tag.ENTRY, message)

        store = LinkStore(publish, timedelta(seconds=_JOIN_TIMEOUT_S))
        reading: asyncio.Future[None] | None = None
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await self._meet(backend)
                reading = asyncio.ensure_future(self._take_entries(store))
                await self.moving(self.group.join(backend, store, rank, self.link.local_host))
                store.seal()
                await self.link.send(Tag.JOINED)
                await reading
        except TimeoutError as exc:
            self.give_up()
            raise TransferTimeout("the peer did not come to the group in time") from exc
        except BaseException:
            self.give_up()
            raise
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def begin(self) -> None:
        """Start a stream."""
        self._has_ended = False

    async def moving(self, move: Awaitable[T]) -> T:
        """Wait for one move of the group, or until the peer is gone. Raises TransferAborted."""
        self.is_moving = True
        moved = asyncio.ensure_future(move)
        lost = asyncio.ensure_future(self.link.lost.wait())
        try:
            await asyncio.wait((moved, lost), return_when=asyncio.FIRST_COMPLETED)
            if not moved.done():
                raise TransferAborted("the peer died")
            result = moved.result()
            self.is_moving = False
            return result
        except BaseException:
            self.give_up()
            raise
        finally:
            moved.cancel()
            lost.cancel()

    async def frame(self) -> tuple[Tag, bytes]:
        """Wait for the peer's next frame. Raises TransferAborted when its half or the lane has ended."""
        if self._has_ended:
            raise TransferAborted("the peer ended the stream")
        self._is_read = True
        try:
            tag, data = await self.link.receive()
        finally:
            self._is_read = False
        if tag in (Tag.FRAME, Tag.DEVICE_FRAME) and len(data) >= HEADER_BYTES:
            return Tag(tag), data
        self._has_ended = tag == Tag.END
        if not self._has_ended:
            self.give_up()
        raise TransferAborted("the peer ended the stream")

    async def rest(self) -> bool:
        """End our half and wait for the peer's; tell whether the lane can serve another stream."""
        if self.is_busy or self.link.lost.is_set():
            self.give_up()
            return False
        self.link.send_soon(Tag.END)
        try:
            async with asyncio.timeout(_REST_TIMEOUT_S):
                while not self._has_ended:
                    tag, data = await self.link.receive()
                    self._has_ended = tag == Tag.END
                    if not self._has_ended and data[:1] in (b"", bytes([Kind.BLOCKS])):
                        break  # a payload waits in the group
        except (TransferAborted, TimeoutError):
            pass
        if not self._has_ended or self.link.lost.is_set():
            self.give_up()
        return not self.link.lost.is_set()

    def give_up(self) -> None:
        """End link and group at once; idempotent."""
        self.link.close()
        self.group.abort()

    async def _meet(self, backend: str) -> None:
        identity = device_identity(self._device)
        await self.link.send(Tag.MEET, f"{backend}\n{identity}".encode())
        tag, data = await self.link.receive()
        name, _, other = data.decode(errors="replace").partition("\n")
        if tag != Tag.MEET or name != backend:
            raise TransferAborted(f"the peer does not speak as kv.transport {backend} does")
        if identity and identity == other:
            raise TransferAborted("both engines are on one GPU, where NCCL cannot go; kv.transport: shm or auto can")

    async def _take_entries(self, store: LinkStore) -> None:
        """Take the peer's entries until it has joined."""
        try:
            while True:
                tag, data = await self.link.receive()
                if tag == Tag.JOINED:
                    return
                if tag != Tag.ENTRY:
                    raise TransferAborted("the peer does not make groups as we do")
                store.take(data)
        except (TransferAborted, CorruptFrame):
            self.link.close()  # whoever waits for the group need not wait longer
            raise
