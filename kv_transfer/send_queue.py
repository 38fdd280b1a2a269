"""The staged frames of one hand-over: in order, numbered, each kept until the peer has acknowledged it.

Owns the staging segments from `put` on and gives each back exactly once. Filled by the engine thread, emptied by the
KV thread. Must not know streams or peers.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice

from core.errors import CorruptFrame
from kv_transfer.frames import blocks_header
from kv_transfer.staging import Segment, StagingPool
from kv_transfer.transport import StagedFrame


@dataclass(frozen=True, slots=True)
class _Staged:
    """One frame with the memory it is in."""

    frame: StagedFrame
    segment: Segment | None  # None: of a later frame, which lies in the same
    layer: int
    first_block: int
    num_blocks: int


class SendQueue:
    """Frames wait in `_staged` until they are first sent, then in `_unacknowledged` until they have landed."""

    def __init__(self, pool: StagingPool, *, seed: int, block_bytes: int) -> None:
        self._pool = pool
        self._seed = seed
        self._block_bytes = block_bytes
        self._lock = threading.Lock()  # over _staged and _closed
        self._staged: deque[_Staged] = deque()
        self._unacknowledged: deque[_Staged] = deque()  # frames number `landed` and up
        self._closed = False
        self._next = 0  # number of the frame to be sent next on the stream that is open
        self.landed = 0  # frames that the peer has
        self.num_frames = 0  # that were sent at least once
        self.num_bytes = 0  # of these
        self.first_needed = 0  # blocks before it are on the decode side already

    # Engine thread

    def put(self, segment: Segment, *, layer: int, first_block: int, num_blocks: int, header: bytes) -> None:
        """Append a frame; its segment is given back at once when the hand-over has ended."""
        frame = StagedFrame(header, segment.view, segment.offset)
        with self._lock:
            if not self._closed:
                self._staged.append(_Staged(frame, segment, layer, first_block, num_blocks))
                return
        self._pool.give_back(segment)

    # KV thread

    def go_on(self, *, first_needed: int, landed: int) -> None:
        """Begin on a stream whose peer has `landed` frames. Raises CorruptFrame when that cannot be."""
        self.first_needed = first_needed
        self.acknowledge(landed)
        self._next = landed

    def take(self, max_bytes: int) -> list[StagedFrame]:
        """Take the frames to be sent next, about `max_bytes` of them; none when all that is staged was sent."""
        frames: list[StagedFrame] = []
        size = 0
        for staged in islice(self._unacknowledged, self._next - self.landed, None):
            if size >= max_bytes:
                break
            frames.append(staged.frame)
            size += staged.frame.payload.nbytes
        while size < max_bytes and (fresh := self._fresh()) is not None:
            self._unacknowledged.append(fresh)
            self.num_frames += 1
            self.num_bytes += fresh.frame.payload.nbytes
            frames.append(fresh.frame)
            size += fresh.frame.payload.nbytes
        self._next += len(frames)
        return frames

    def acknowledge(self, landed: int) -> None:
        """Give back the memory of what has landed. Raises CorruptFrame for frames that were never sent."""
        if not self.landed <= landed <= self.num_frames:
            raise CorruptFrame(f"{landed} frames are said to have landed, of {self.landed} to {self.num_frames}")
        for _ in range(landed - self.landed):
            self._give_back(self._unacknowledged.popleft())
        self.landed = landed

    def close(self) -> None:
        """Give everything back, what is put later too; no stream may read it any more."""
        with self._lock:
            self._closed = True
            rest = [*self._unacknowledged, *self._staged]
            self._staged.clear()
        self._unacknowledged.clear()
        for staged in rest:
            self._give_back(staged)

    def _give_back(self, staged: _Staged) -> None:
        if staged.segment is not None:
            self._pool.give_back(staged.segment)

    def _fresh(self) -> _Staged | None:
        """Take the next staged frame of which the decode side needs something, without what it does not need."""
        while True:
            with self._lock:
                if not self._staged:
                    return None
                staged = self._staged.popleft()
            known = self.first_needed - staged.first_block
            if known <= 0:
                return staged
            if known < staged.num_blocks:
                first, *rest = self._without_first(staged, known)
                with self._lock:
                    self._staged.extendleft(reversed(rest))
                return first
            self._give_back(staged)

    def _without_first(self, staged: _Staged, count: int) -> list[_Staged]:
        """Make a frame of each layer, without its first blocks; the last one owns the memory, as it lands last."""
        first, rest = staged.first_block + count, staged.num_blocks - count
        layer_bytes, skipped = staged.num_blocks * self._block_bytes, count * self._block_bytes
        parts = []
        for index, start in enumerate(range(0, staged.frame.payload.nbytes, layer_bytes)):
            payload = staged.frame.payload[start + skipped : start + layer_bytes]
            layer = staged.layer + index
            header = blocks_header(self._seed, layer, first, rest, payload)
            frame = StagedFrame(header, payload, staged.frame.offset + start + skipped)
            parts.append(_Staged(frame, None, layer, first, rest))
        parts[-1] = replace(parts[-1], segment=staged.segment)
        return parts
