"""KV blocks that stay in the memory of their device from one cache to the other.

Owns the contiguous buffer a frame is gathered to, its sum, and the order between the engine's stream and ours: ours
waits for the kernels that wrote the blocks, and the engine's next step for our copies out of them. A buffer is the
payload and, behind it, SUM_BYTES of a sum over payload and place that both devices work out, so that no byte has
to come to the host. On a CPU it is the same code without streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from core.errors import CorruptFrame

SUM_BYTES: Final = 8
_ODD: Final = 0x1E37_79B9_7F4A_7C15  # odd, so that no flipped bit of a word is multiplied away


@dataclass(frozen=True, slots=True)
class DeviceBuffer:
    """A gathered frame."""

    tensor: torch.Tensor  # (payload bytes + SUM_BYTES,) uint8
    place: int  # where it belongs, as kv_transfer.frames.place_of names it
    ready: Any = None  # the event behind which it is filled; None on a CPU
    stream: Any = None  # the one it was filled on

    @property
    def payload(self) -> torch.Tensor:
        """The blocks, back to back."""
        return self.tensor[:-SUM_BYTES]

    def without_first(self, skipped_bytes: int, place: int) -> DeviceBuffer:
        """Leave the first blocks out; what remains is for another place."""
        with _on(self.stream):
            return _sealed(self.payload[skipped_bytes:], place, self.stream)

    def copy_to_host(self, view: memoryview) -> None:
        """Copy the payload to host memory; it is there on return."""
        if self.ready is not None:
            self.ready.synchronize()
        torch.frombuffer(view, dtype=torch.uint8).copy_(self.payload)


class DeviceBlocks:
    """Gathers blocks of one engine rank's cache and scatters what came."""

    def __init__(self, rows: Sequence[torch.Tensor]) -> None:
        """Take the cache by layer, (num_blocks, block_bytes) uint8 each."""
        self._rows = rows
        self._device = rows[0].device
        self._is_cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if self._is_cuda else None
        self._reserved: Any = None  # behind it, the engine has done with all blocks that were reserved so far

    # Engine thread

    def gather(self, layer: int, block_ids: Sequence[int], place: int) -> DeviceBuffer:
        """Copy blocks to a buffer of their own, behind the kernels that the engine has launched so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with _on(self._stream):
            rows = self._rows[layer]
            picked = rows.index_select(0, torch.tensor(block_ids, device=self._device))
            return _sealed(picked.view(-1), place, self._stream)

    def end_step(self) -> None:
        """Have the engine's next kernels wait for our copies: the blocks may be another request's by then."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def reserve(self) -> None:
        """Note that blocks were reserved: what lands in them comes behind the kernels launched so far."""
        if self._is_cuda:
            self._reserved = torch.cuda.current_stream(self._device).record_event()

    # KV thread

    def scatter(self, layer: int, block_ids: Sequence[int], place: int, tensor: torch.Tensor) -> None:
        """Check a buffer that came and copy it to blocks of the cache; they are there on return.

        Works on the stream that is current, behind what `reserve` noted. Raises CorruptFrame.
        """
        payload = tensor[:-SUM_BYTES]
        if int(tensor[-SUM_BYTES:].clone().view(torch.int64)) != int(place_sum(payload, place)):
            raise CorruptFrame(f"the sum of layer {layer} does not match")
        if self._is_cuda and self._reserved is not None:
            torch.cuda.current_stream(self._device).wait_event(self._reserved)
        rows = self._rows[layer]
        ids = torch.tensor(block_ids, device=self._device)
        rows.index_copy_(0, ids, payload.view(len(block_ids), rows.shape[1]))
        if self._is_cuda:
            # The engine hears of the blocks after this, so whatever it launches on them comes behind the copy.
            torch.cuda.current_stream(self._device).synchronize()


def _sealed(payload: torch.Tensor, place: int, stream: Any) -> DeviceBuffer:
    """Put the sum behind a payload; on the stream that is current, which is `stream`."""
    tensor = torch.cat((payload, place_sum(payload, place).view(1).view(torch.uint8)))
    return DeviceBuffer(tensor, place, None if stream is None else stream.record_event(), stream)


def _on(stream: Any) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext()


def place_sum(payload: torch.Tensor, place: int) -> torch.Tensor:
    """Sum the words of a payload, each times an odd number of its own, and its place, modulo 2**64; on its device."""
    if payload.storage_offset() % 8:
        payload = payload.clone()  # words must begin where a word may
    whole = payload.numel() // 8 * 8
    words = payload[:whole].view(torch.int64) if whole else payload.new_zeros(0, dtype=torch.int64)
    if whole < payload.numel():
        rest = payload.new_zeros(8)
        rest[: payload.numel() - whole] = payload[whole:]
        words = torch.cat((words, rest.view(torch.int64)))
    odd = torch.arange(1, 2 * words.numel(), 2, device=payload.device)
    return (words * (odd * _ODD)).sum() + _signed(place * _ODD + 1)


def _signed(number: int) -> int:
    number &= 0xFFFF_FFFF_FFFF_FFFF
    return number - (1 << 64) if number >> 63 else number
