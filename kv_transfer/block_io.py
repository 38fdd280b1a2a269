"""Whole KV blocks of an engine's cache as rows of bytes.

Knows that dimension 0 of every layer's cache is the block and that one block is contiguous; what lies inside a block
belongs to the attention backend (on CPU it is not even token-major) and is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from core.errors import PeerMismatch


class BlockIO:
    """Copies blocks out of and into the paged cache of one engine rank."""

    def __init__(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Take the cache tensors by layer name, in layer order.

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
        self._on_host = first.device.type == "cpu"
        self._host_views = [memoryview(rows.view(-1).numpy()) for rows in self._rows] if self._on_host else []
        # Copies on a GPU run beside the forward pass; created where they are used, from the KV thread.
        self._stream: torch.cuda.Stream | None = None if self._on_host else torch.cuda.Stream(first.device)

    def gather(self, layer: int, block_ids: Sequence[int]) -> list[memoryview]:
        """Return the bytes of some blocks of one layer, a row each.

        On a CPU the rows view the live cache: the caller must copy them before the engine may write there again.
        On a GPU they are a copy, ordered after the kernels launched so far on the calling thread's stream.
        """
        if self._on_host:
            view, size = self._host_views[layer], self.block_bytes
            return [view[block_id * size : (block_id + 1) * size] for block_id in block_ids]
        ids = torch.tensor(block_ids, device=self._rows[layer].device)
        host = self._rows[layer].index_select(0, ids).cpu()  # (len(block_ids), block_bytes)
        view, size = memoryview(host.view(-1).numpy()), self.block_bytes
        return [view[index * size : (index + 1) * size] for index in range(len(block_ids))]

    def scatter(self, layer: int, block_ids: Sequence[int], payload: memoryview) -> None:
        """Write blocks of one layer; returns when the bytes are in the cache. `payload` holds them back to back."""
        size = self.block_bytes
        if self._stream is None:
            view = self._host_views[layer]
            for index, block_id in enumerate(block_ids):
                view[block_id * size : (block_id + 1) * size] = payload[index * size : (index + 1) * size]
            return
        rows = self._rows[layer]
        with torch.cuda.stream(self._stream):
            data = torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(len(block_ids), size)
            rows.index_copy_(0, torch.tensor(block_ids, device=rows.device), data.to(rows.device))
        self._stream.synchronize()
