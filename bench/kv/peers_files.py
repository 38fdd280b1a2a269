"""Files, as vLLM's ExampleConnector moves KV: a safetensors file for each layer, read when all are written.

Does what `save_kv_layer` and `start_load_kv` of vLLM 0.32 (kv_connector/v1/example_connector.py) do with a layer:
index its cache by the prompt's slots, write the file; load the file, assign by the slots. Without the engine around it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.kv.cache import BLOCK_TOKENS, LAYERS, Bytes, Ids, Job
from bench.kv.side import Side, Span

_HEADS = 8


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that writes files."""
    return _Writer(cache)


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that reads them."""
    return _Reader(cache)


class _End:
    address = ""

    def __init__(self, cache: Bytes) -> None:
        # (LAYERS, blocks, heads, tokens of a block, what one head has of a token)
        self._cache: Any = (
            torch.from_numpy(cache).view(torch.bfloat16).view(LAYERS, cache.shape[1], _HEADS, BLOCK_TOKENS, -1)
        )
        self._folder = Path()

    def meet(self, address: str) -> None:
        if address:
            self._folder = Path(address)

    def prepare(self, job: Job) -> None:
        """Nothing is prepared."""

    def close(self) -> None:
        """Nothing is held."""


class _Writer(_End):
    def __init__(self, cache: Bytes) -> None:
        super().__init__(cache)
        self._temporary = tempfile.TemporaryDirectory(prefix="baton-bench-kv-")
        self.address = self._temporary.name
        self._folder = Path(self.address)

    def run(self, job: Job) -> Span:
        began_s = monotonic()
        blocks, offsets = _slots(job.source)
        for layer in range(LAYERS):
            save_file({"kv_cache": self._cache[layer][blocks, :, offsets]}, self._folder / f"{layer}.safetensors")
        return Span(began_s)

    def close(self) -> None:
        self._temporary.cleanup()


class _Reader(_End):
    def run(self, job: Job) -> Span:
        blocks, offsets = _slots(job.target)
        for layer in range(LAYERS):
            loaded = load_file(self._folder / f"{layer}.safetensors")["kv_cache"]
            self._cache[layer][blocks, :, offsets] = loaded
        return Span(ended_s=monotonic())


def _slots(blocks: Ids) -> tuple[Any, Any]:
    slots = torch.arange(len(blocks) * BLOCK_TOKENS)
    return torch.from_numpy(blocks)[slots // BLOCK_TOKENS], slots % BLOCK_TOKENS
