"""The frames of one hand-over: in order, numbered, each kept until the peer has acknowledged it.

Owns the staging segments from `put` on and gives each back exactly once; a frame may also lie in the engine's cache,
until it is copied out. Filled by the engine thread, emptied by the KV thread. Must not know streams or peers.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from core.errors import CorruptFrame, StagingFull
from kv_transfer.frames import blocks_header, digested_header, place_header, place_of
from kv_transfer.staging import Segment, StagingPool
from kv_transfer.transport import StagedFrame

if TYPE_CHECKING:
    from kv_transfer.cached_blocks import CachedBlocks
    from kv_transfer.device_blocks import DeviceBuffer

_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class _Staged:
    """One frame with the memory it is in."""

    frame: StagedFrame
    segment: Segment | None  # None: of a later frame, which lies in the same, or in the cache
    layer: int
    first_block: int
    num_blocks: int


class SendQueue:
    """Frames wait in `_staged` until they are first sent, then in `_unacknowledged` until they have landed."""

    def __init__(self, pool: StagingPool, *, seed: int, block_bytes: int) -> None:
        self._pool = pool
        self._seed = seed
        self._block_bytes = block_bytes
        self._lock = threading.RLock()  # over both queues and what follows
        self._staged: deque[_Staged] = deque()
        self._unacknowledged: deque[_Staged] = deque()  # frames number `landed` and up
        self._closed = False
        self._next = 0  # number of the frame to be sent next on the stream that is open
        self.landed = 0  # frames that the peer has
        self.num_frames = 0  # that were sent at least once
        self.num_bytes = 0  # of these
        self.first_needed = 0  # blocks before it are on the decode side already
        self.cached_bytes = 0  # of frames that lie in the cache

    # Engine thread

    def put(
        self,
        segment: Segment | None,
        *,
        layer: int,
        first_block: int,
        num_blocks: int,
        header: bytes,
        device: DeviceBuffer | None = None,
        cached: CachedBlocks | None = None,
    ) -> None:
        """Append a frame, here, still on `device` or in the cache; its segment is given back when all has ended."""
        if segment is None:
            frame = StagedFrame(header, _NOTHING, 0, cached=cached)
        else:
            frame = StagedFrame(header, segment.view, segment.offset, device)
        staged = _Staged(frame, segment, layer, first_block, num_blocks)
        with self._lock:
            if not self._closed:
                self._staged.append(staged)
                self.cached_bytes += _cached_bytes(staged)
                return
        self._give_back(staged)

    # Either thread

    def copy_out(self) -> bool | None:
        """Copy every frame out of the cache; the caller sees to it that none is put there any more.

        Returns whether the stream that is open was given one of them, whose peer may be reading it; None when there
        was not enough memory for all.
        """
        with self._lock:
            num_given = self._next - self.landed  # of those that have not landed
            was_given = False
            for queue in (self._unacknowledged, self._staged):
                for index, staged in enumerate(queue):
                    if staged.frame.cached is None:
                        continue
                    copy = self._copied(staged, staged.frame.cached)
                    if copy is None:
                        return None
                    was_given |= queue is self._unacknowledged and index < num_given
                    queue[index] = copy
                    self.cached_bytes -= _cached_bytes(staged)
            return was_given

    # KV thread

    def go_on(self, *, first_needed: int, landed: int) -> None:
        """Begin on a stream whose peer has `landed` frames. Raises CorruptFrame when that cannot be."""
        self.first_needed = first_needed
        self.acknowledge(landed)
        self._next = landed

    def take(self, max_bytes: int, *, cached: bool = True) -> list[StagedFrame]:
        """Take the frames to be sent next, about `max_bytes` of them; none when all that is staged was sent.

        Unless the peer can read those that lie in the cache, they are copied first. Raises StagingFull.
        """
        frames: list[StagedFrame] = []
        size = 0
        with self._lock:
            if self.cached_bytes and not cached and self.copy_out() is None:
                raise StagingFull(f"no memory to copy {self.cached_bytes} bytes of KV out; raise kv.staging_mb")
            for staged in islice(self._unacknowledged, self._next - self.landed, None):
                if size >= max_bytes:
                    break
                frames.append(staged.frame)
                size += staged.frame.size
            while size < max_bytes and (fresh := self._fresh()) is not None:
                self._unacknowledged.append(fresh)
                self.num_frames += 1
                self.num_bytes += fresh.frame.size
                frames.append(fresh.frame)
                size += fresh.frame.size
            self._next += len(frames)
        return frames

    def acknowledge(self, landed: int) -> None:
        """Give back the memory of what has landed. Raises CorruptFrame for frames that were never sent."""
        if not self.landed <= landed <= self.num_frames:
            raise CorruptFrame(f"{landed} frames are said to have landed, of {self.landed} to {self.num_frames}")
        with self._lock:
            for _ in range(landed - self.landed):
                self._release(self._unacknowledged.popleft())
            self.landed = landed

    def close(self) -> None:
        """Give everything back, what is put later too; no stream may read it any more."""
        with self._lock:
            self._closed = True
            rest = [*self._unacknowledged, *self._staged]
            self._staged.clear()
            self._unacknowledged.clear()
            for staged in rest:
                self._release(staged)

    def _release(self, staged: _Staged) -> None:
        self.cached_bytes -= _cached_bytes(staged)
        self._give_back(staged)

    def _give_back(self, staged: _Staged) -> None:
        if staged.segment is not None:
            self._pool.give_back(staged.segment)

    def _copied(self, staged: _Staged, cached: CachedBlocks) -> _Staged | None:
        """Move a frame from the cache to staging memory; None when there is none left."""
        segment = self._pool.take(cached.size_bytes)
        if segment is None:
            return None
        cached.copy_to(segment.view)
        frame = StagedFrame(staged.frame.header, segment.view, segment.offset)
        return replace(staged, frame=frame, segment=segment)

    def _fresh(self) -> _Staged | None:
        """Take the next staged frame of which the decode side needs something, without what it does not need."""
        while self._staged:
            staged = self._staged.popleft()
            known = self.first_needed - staged.first_block
            if known <= 0:
                return staged
            if known < staged.num_blocks:
                first, *rest = self._without_first(staged, known)
                self.cached_bytes += sum(map(_cached_bytes, (first, *rest))) - _cached_bytes(staged)
                self._staged.extendleft(reversed(rest))
                return first
            self._release(staged)
        return None

    def _without_first(self, staged: _Staged, count: int) -> list[_Staged]:
        """Make a frame of each layer, without its first blocks; the last one owns the memory, as it lands last."""
        first, rest = staged.first_block + count, staged.num_blocks - count
        parts = [
            _Staged(self._part(staged, layer, count), None, layer, first, rest)
            for layer in range(staged.layer, staged.layer + self._num_layers(staged))
        ]
        parts[-1] = replace(parts[-1], segment=staged.segment)
        return parts

    def _part(self, staged: _Staged, layer: int, count: int) -> StagedFrame:
        """Take one layer of a frame without its first blocks."""
        first, rest = staged.first_block + count, staged.num_blocks - count
        size = rest * self._block_bytes
        frame = staged.frame
        if frame.cached is not None:
            cached = frame.cached.part(layer, count)
            header = digested_header(self._seed, layer, first, rest, size=size, digest=cached.digest())
            return StagedFrame(header, _NOTHING, 0, cached=cached)
        skipped = count * self._block_bytes
        start = (layer - staged.layer) * staged.num_blocks * self._block_bytes + skipped
        payload = frame.payload[start : start + size]
        if frame.device is None:
            header = blocks_header(self._seed, layer, first, rest, payload)
            return StagedFrame(header, payload, frame.offset + start)
        device = frame.device.without_first(skipped, place_of(self._seed, layer, first))  # of one layer
        return StagedFrame(place_header(layer, first, rest, size), payload, frame.offset + start, device)

    def _num_layers(self, staged: _Staged) -> int:
        return staged.frame.size // (staged.num_blocks * self._block_bytes)


def _cached_bytes(staged: _Staged) -> int:
    return staged.frame.size if staged.frame.cached is not None else 0
