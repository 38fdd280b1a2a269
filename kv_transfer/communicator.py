"""Two-rank process groups of torch, each used from a thread of its own.

Owns groups, the thread that waits in them and the CUDA stream they work on; uses no global process group, so peers come
and go. Knows nothing of sockets or frames. Importing this module imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch

from core.errors import ConfigError, KVTransferError, TransferAborted
from kv_transfer.link_store import LinkStore

T = TypeVar("T")
_FIRST_POLL_S, _LAST_POLL_S = 20e-6, 1e-3  # a CUDA event can be waited for without a bound or asked, not both
# torch's watchdog of a group ends the whole process when a peer dies (ASYNC_ERROR_HANDLING 3, its default) or when a
# thread of it hangs; a peer that dies is an everyday thing here, and costs its lane only.
_NCCL_ENVIRONMENT: Final = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
_ENVIRONMENT_LOCK: Final = threading.Lock()


def missing_for(backend: str, device: str) -> str | None:
    """Say what `backend` lacks here to move memory of `device`; None when it can."""
    if backend == "gloo":
        return None
    if not device.startswith("cuda"):
        return f"it moves KV from GPU to GPU, and the KV cache of this engine is in {device} memory"
    if not torch.distributed.is_nccl_available():
        return "this torch was built without NCCL"
    return None


def device_identity(device: torch.device) -> str:
    """Name the device that memory lies on, for a peer on the same machine or another."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


class Communicator:
    """One group of two; calls are made in order, in one thread. After a failure it is of no more use."""

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._group: Any = None
        self._store: LinkStore | None = None
        self._is_aborted = False
        self._peer = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-collective")

    async def join(self, backend: str, store: LinkStore, rank: int, local_host: str) -> None:
        """Meet the other rank; gloo binds to `local_host`. Raises TransferAborted."""
        self._store = store
        await self._call(lambda: self._join(backend, store, rank, local_host))

    async def send(self, payload: memoryview | torch.Tensor, ready: Any = None) -> None:
        """Send bytes of host memory, or a contiguous tensor once the event `ready` has come.

        Returns when they have left. Raises TransferAborted when that fails or stalls.
        """
        await self._call(lambda: self._send(payload, ready))

    async def receive(self, size: int, land: Callable[[torch.Tensor], T]) -> T:
        """Wait for `size` bytes in a fresh buffer on our device; return what `land` makes of it, in our thread.

        Raises TransferAborted when that fails or stalls.
        """
        return await self._call(lambda: self._receive(size, land))

    def abort(self) -> None:
        """Give the group up at once; a call in progress ends when the peer does the same, or at its time-out."""
        self._is_aborted = True
        group, self._group = self._group, None
        if self._store is not None:
            self._store.end()
        if group is not None:
            with contextlib.suppress(RuntimeError):
                group.abort()
        self._thread.shutdown(wait=False)  # what waits in it ends at once: there is no group

    async def _call(self, function: Callable[[], T]) -> T:
        if self._is_aborted:
            raise TransferAborted("the communicator was given up")
        return await asyncio.get_running_loop().run_in_executor(self._thread, _without_frames, function)

    def _join(self, backend: str, store: LinkStore, rank: int, local_host: str) -> None:
        if backend == "gloo":
            from torch.distributed.distributed_c10d import ProcessGroupGloo

            options = ProcessGroupGloo._Options()
            options._devices = [ProcessGroupGloo.create_device(hostname=local_host)]
            options._threads = 1
            options._timeout = timedelta(seconds=self._timeout_s)
            group = ProcessGroupGloo(store, rank, 2, options)
        else:
            group = self._nccl_group(store, rank)
        self._peer = 1 - rank
        if self._is_aborted:
            return
        self._group = group
        if self._is_aborted:  # meanwhile, by another thread
            self.abort()
        # NCCL connects with the first byte that is moved: here, where somebody waits for it and a failure has a name.
        if rank:
            self._send(memoryview(bytearray(1)), None)
        else:
            self._receive(1, lambda buffer: None)

    def _nccl_group(self, store: LinkStore, rank: int) -> Any:
        from torch.distributed.distributed_c10d import ProcessGroupNCCL

        torch.cuda.set_device(self._device)
        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=10 * self._timeout_s)  # ours ends a wait first
        with _environment(_NCCL_ENVIRONMENT):  # read as a group is made: other groups of the process keep theirs
            return ProcessGroupNCCL(store, rank, 2, options)

    def _send(self, payload: memoryview | torch.Tensor, ready: Any) -> None:
        with self._on_stream():
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
            tensor = payload if isinstance(payload, torch.Tensor) else torch.frombuffer(payload, dtype=torch.uint8)
            tensor = tensor.to(self._device)
            if self._stream is not None:
                tensor.record_stream(self._stream)  # its memory is not given to others before the last byte has left
            self._finish(self._living_group().send([tensor], self._peer, 0))

    def _receive(self, size: int, land: Callable[[torch.Tensor], T]) -> T:
        with self._on_stream():
            buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._finish(self._living_group().recv([buffer], self._peer, 0))
            return land(buffer)

    def _finish(self, work: Any) -> None:
        """Wait until a move is over, for our time-out at most."""
        work.wait(timedelta(seconds=self._timeout_s))
        if self._stream is None:
            return
        moved = torch.cuda.Event()  # a wait for NCCL makes the stream wait, not us
        moved.record(self._stream)
        give_up_s, pause_s = time.monotonic() + self._timeout_s, _FIRST_POLL_S
        while not moved.query():
            self._living_group()
            if time.monotonic() > give_up_s:
                raise TransferAborted(f"nothing moved for {self._timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_POLL_S)

    def _living_group(self) -> Any:
        group = self._group  # read once: `abort` comes from another thread
        if group is None:
            raise TransferAborted("the communicator was given up")
        return group

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext()


def check_backend(backend: str, device: str) -> None:
    """Raise ConfigError when this process cannot use `backend`."""
    if (missing := missing_for(backend, device)) is not None:
        raise ConfigError(f"kv.transport: {backend} cannot be used: {missing}; set kv.transport to auto")


def _without_frames(function: Callable[[], T]) -> T:
    """Call a function; its errors keep none of its frames, which would keep a group and its sockets until a collection.

    (A future that was given up and the callbacks between it and the loop's hold each other.) Raises a KVTransferError.
    """
    error: KVTransferError
    try:
        return function()
    except KVTransferError as exc:
        error = exc.with_traceback(None)
    except RuntimeError as exc:  # all that torch.distributed raises
        lines = str(exc).splitlines() or ["no reason given"]
        error = TransferAborted(f"the communicator failed: {lines[0]}")
    try:
        raise error
    finally:
        del error


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    with _ENVIRONMENT_LOCK:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
