"""What both measurements of Baton share: its cache as an engine shows it, frames staged from it, the KV thread's loop.

Owns no figures. Must not know what a hand-over is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Final

import torch

from bench.kv.cache import BLOCK_BYTES, Bytes
from kv_transfer.block_io import BlockIO
from kv_transfer.stager import CACHED_FRAME_BYTES, FRAME_BYTES

STAGING_BYTES: Final = 1 << 30  # kv.staging_mb's default
_AHEAD_BYTES: Final = (
    8 << 20
)  # that are staged and have not landed, at most; with more, staging falls out of the processor's cache
_FULL_WAIT_S: Final = 0.0001
WAIT_S: Final = 120.0


def block_io(cache: Bytes) -> BlockIO:
    """Show a cache as an engine does, a tensor a layer."""
    return BlockIO({f"layer.{index}": torch.from_numpy(layer) for index, layer in enumerate(cache)})


def frames_of(io: BlockIO, num_blocks: int) -> Iterator[tuple[int, int]]:
    """Divide a layer's blocks into frames: (first block, number of blocks)."""
    count = (FRAME_BYTES if io.shared is None else CACHED_FRAME_BYTES) // BLOCK_BYTES
    for first in range(0, num_blocks, count):
        yield first, min(count, num_blocks - first)


def wait_for_layer(began_s: float, layer: int, layer_ms: float) -> None:
    """Wait until a layer is computed, when one takes `layer_ms`; computing takes no core here."""
    wait_s = began_s + (layer + 1) * layer_ms / 1e3 - time.monotonic()
    if layer_ms and wait_s > 0:
        time.sleep(wait_s)


def wait_for_staging(staged_bytes: Callable[[], int], size: int) -> None:
    """Wait while much is staged that has not landed: no engine computes KV as fast as this copies it."""
    deadline_s = time.monotonic() + WAIT_S
    while staged_bytes() + size > _AHEAD_BYTES:
        if time.monotonic() > deadline_s:
            raise TimeoutError("the receiver acknowledges nothing")
        time.sleep(_FULL_WAIT_S)


class KvThread:
    """A thread with an event loop, as an engine rank has one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="baton-kv", daemon=True)
        self._thread.start()

    def post(self, task: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(task, self.loop)

    def call(self, task: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop and wait for it."""
        return self.post(task).result(WAIT_S)

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()
