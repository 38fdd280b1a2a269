"""Whole KV blocks of an engine's cache as rows of bytes.

Knows that dimension 0 of every layer's cache is the block and that one block is contiguous; what lies inside a block
belongs to the attention backend (on CPU it is not even token-major) and is never looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from core.errors import PeerMismatch
from kv_transfer.copying import gather_hashed
from kv_transfer.device_blocks import DeviceBlocks
from kv_transfer.frames import Digest
from kv_transfer.rows import Rows
from kv_transfer.shared_cache import SharedCache
from kv_transfer.vectored import Addresses, prepare

logger = logging.getLogger(__name__)


class BlockIO:
    """Copies blocks out of and into the paged cache of one engine rank."""

    def __init__(self, kv_caches: Mapping[str, torch.Tensor], *, by_device: bool = False) -> None:
        """Take the cache tensors by layer name, in layer order; `by_device` treats a CPU as a device of its own.

        Raises PeerMismatch when layers differ in shape (several KV groups are not supported) or a block is not
        contiguous.
        """
        first = next(iter(kv_caches.values()))
        for name, cache in kv_caches.items():
            if cache.shape != first.shape or cache.dtype != first.dtype:
                raise PeerMismatch(
                    f"layer {name} has KV of another shape; models with several KV groups cannot hand over"
                )
            if not cache[0].is_contiguous():
                raise PeerMismatch(f"the KV blocks of layer {name} are not contiguous")
        self.layer_index = {name: index for index, name in enumerate(kv_caches)}
        self.num_blocks = first.shape[0]
        self.num_layers = len(kv_caches)
        self.layout = f"{first.device.type}:{self.num_layers}x{tuple(first.shape[1:])}:{first.dtype}"
        # One row per block: (num_blocks, block_bytes) uint8, sharing memory with the cache.
        self._rows = [cache.view(self.num_blocks, -1).view(torch.uint8) for cache in kv_caches.values()]
        self.block_bytes = self._rows[0].shape[1]
        self.on_host = first.device.type == "cpu"  # the host reads and writes the cache itself
        self.device_name = str(first.device)
        # For transports between devices; None where the host reads and writes the cache itself.
        self.device = None if self.on_host and not by_device else DeviceBlocks(self._rows)
        self._host_rows = [rows.numpy() for rows in self._rows] if self.on_host else []
        self._host_views = [memoryview(rows.view(-1).numpy()) for rows in self._rows] if self.on_host else []
        self.shared: SharedCache | None = None  # the cache, where peers may map it
        self._addresses = np.array([rows.data_ptr() for rows in self._rows], dtype=np.uint64)  # of each layer's block 0
        # Copies on a GPU run beside the forward pass; created where they are used, from the KV thread.
        self._stream: torch.cuda.Stream | None = None if self.on_host else torch.cuda.Stream(first.device)

    @property
    def host_memory(self) -> Sequence[memoryview]:
        """The cache, layer by layer, where the host reads and writes it."""
        return self._host_views

    def share(self) -> SharedCache | None:
        """Move the cache to memory that peers of this host can map, while the engine waits; None where it cannot be."""
        if self.shared is None and self.on_host and self.device is None and prepare():
            try:
                self._move()
            except OSError as exc:
                logger.warning("the KV cache is not shared, peers of this host get copies out of it: %s", exc)
        return self.shared

    def _move(self) -> None:
        shared = SharedCache(self._host_views, self.block_bytes)
        if shared.size_bytes:
            self.shared = shared
        else:
            shared.close()

    def close(self) -> None:
        """Give up the sharing, in a process that goes on without the cache; 0.8 s for each GiB."""
        shared, self.shared = self.shared, None
        if shared is not None:
            shared.close()

    def gather_into(self, layer: int, block_ids: Sequence[int], view: memoryview, digest: Digest | None = None) -> None:
        """Copy blocks of one layer to `view`, back to back, and feed them to `digest`; they are there on return.

        On a GPU the copy is ordered after the kernels launched so far on the calling thread's stream.
        """
        digest = Digest() if digest is None else digest
        if self.on_host:
            gather_hashed(view, self._host_rows[layer], block_ids, digest)
            return
        rows = self._rows[layer]
        picked = rows.index_select(0, torch.tensor(block_ids, device=rows.device))  # (len(block_ids), block_bytes)
        torch.frombuffer(view, dtype=torch.uint8).view(picked.shape).copy_(picked)
        digest.update(view)

    def addresses(self, layers: range, block_ids: Sequence[int]) -> Addresses:
        """Say where blocks lie in a cache that the host reads, layer by layer."""
        offsets = np.array(block_ids, dtype=np.uint64) * np.uint64(self.block_bytes)
        return (self._addresses[layers.start : layers.stop, None] + offsets).reshape(-1)

    def rows(self, layers: range, block_ids: Sequence[int]) -> Sequence[memoryview]:
        """Return the cache's own memory for blocks of some layers, where the host writes it."""
        return Rows(
            self.addresses(layers, block_ids),
            self.block_bytes,
            lambda: [row for layer in layers for row in self._views_of(layer, block_ids)],
        )

    def writable(self, layer: int, block_ids: Sequence[int]) -> list[memoryview]:
        """Return memory for blocks of one layer, in their order; they count once `commit` has been called with it.

        On a CPU it is the cache itself; on a GPU pinned memory of the host.
        """
        if self.on_host:
            return self._views_of(layer, block_ids)
        host = torch.empty(len(block_ids) * self.block_bytes, dtype=torch.uint8, pin_memory=True)
        return [memoryview(host.numpy())]

    def commit(self, layer: int, block_ids: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Take what was written to the rows of `writable` into the cache; it is there on return."""
        if self._stream is None:
            return
        (host,) = rows
        cache = self._rows[layer]
        with torch.cuda.stream(self._stream):
            data = torch.frombuffer(host, dtype=torch.uint8).view(len(block_ids), self.block_bytes)
            ids = torch.tensor(block_ids, device=cache.device)
            cache.index_copy_(0, ids, data.to(cache.device, non_blocking=True))
        self._stream.synchronize()

    def _views_of(self, layer: int, block_ids: Sequence[int]) -> list[memoryview]:
        """View blocks of the cache in their order; neighbours are one row."""
        view, size = self._host_views[layer], self.block_bytes
        rows = []
        start = 0
        for index in range(1, len(block_ids) + 1):
            if index == len(block_ids) or block_ids[index] != block_ids[index - 1] + 1:
                rows.append(view[block_ids[start] * size : (block_ids[index - 1] + 1) * size])
                start = index
        return rows
