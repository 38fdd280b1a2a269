"""One of Baton's transports alone: blocks staged, checksummed, sent, landed, verified and acknowledged.

Does with a transport what sender and receiver of kv_transfer do with it, without offers, grants and leases.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from bench.kv.cache import LAYERS, Bytes, Job
from bench.kv.kv_thread import STAGING_BYTES, WAIT_S, KvThread, block_io, frames_of, wait_for_layer, wait_for_staging
from bench.kv.side import Side, Span
from kv_transfer.block_io import BlockIO
from kv_transfer.cached_blocks import CachedBlocks
from kv_transfer.frames import Kind, control_frame, read_control, transfer_seed, verify_blocks
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.send_queue import SendQueue
from kv_transfer.sender import BATCH_BYTES
from kv_transfer.shm_transport import ShmTransport
from kv_transfer.stager import Stager
from kv_transfer.staging import Segment, StagingPool
from kv_transfer.tcp_transport import TcpTransport
from kv_transfer.transport import Incoming, Outgoing, Transport

_TOKEN: Final = "bench"


async def _no_control(verb: str, arguments: dict[str, str]) -> dict[str, object]:
    raise ValueError(f"the call {verb!r} is not known here")


_MAKE: Final[Mapping[str, Callable[[StagingPool, Path, BlockIO], Transport]]] = {
    "grpc": lambda pool, folder, io: GrpcTransport(_no_control, token=_TOKEN),
    "tcp": lambda pool, folder, io: TcpTransport(_TOKEN),
    "shm": lambda pool, folder, io: ShmTransport(_TOKEN, pool, folder, io.shared),
}


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that stages and sends."""
    return _Sender(cache, options, STAGING_BYTES)


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the end that lands."""
    return _Receiver(cache, options, 1 << 20)


class _End:
    address = ""

    def __init__(self, cache: Bytes, options: dict[str, str], staging_bytes: int) -> None:
        self._io = block_io(cache)
        self._pool = StagingPool(staging_bytes)
        self._folder = tempfile.TemporaryDirectory(prefix="baton-bench-kv-")
        self._thread = KvThread()
        if options["transport"] == "shm" and options.get("share_cache", "yes"):
            self._io.share()
        self._transport = _MAKE[options["transport"]](self._pool, Path(self._folder.name), self._io)
        self._peer = ""

    def meet(self, address: str) -> None:
        self._peer = address

    def close(self) -> None:
        self._thread.call(self._transport.close())
        self._thread.close()
        self._pool.close()
        self._folder.cleanup()


class _Frames:
    """Takes the place of kv_transfer.sender for the thread that stages; implements kv_transfer.stager.Frames."""

    def __init__(self, pool: StagingPool, queue: SendQueue, wake: Callable[[], object]) -> None:
        self._pool, self._queue, self._wake = pool, queue, wake

    def stays_in_cache(self, transfer_id: str) -> bool:
        return True

    def take(self, transfer_id: str, size: int) -> Segment | None:
        wait_for_staging(lambda: self._pool.used_bytes, size)
        return self._pool.take(size)

    def put(
        self,
        transfer_id: str,
        segment: Segment | None,
        *,
        layer: int,
        first_block: int,
        num_blocks: int,
        header: bytes,
        cached: CachedBlocks | None = None,
    ) -> None:
        self._queue.put(
            segment, layer=layer, first_block=first_block, num_blocks=num_blocks, header=header, cached=cached
        )
        self._wake()


class _Sender(_End):
    def prepare(self, job: Job) -> None:
        """Nothing is prepared: the stream is opened in the measured time, as a hand-over opens it."""

    def run(self, job: Job) -> Span:
        """Stage on this thread, as an engine does, while the KV thread sends."""
        name, ids = str(job.number), job.source.tolist()
        queue = SendQueue(self._pool, seed=transfer_seed(name), block_bytes=self._io.block_bytes)
        staged, complete = asyncio.Event(), threading.Event()
        began_s = time.monotonic()
        wake = partial(self._thread.loop.call_soon_threadsafe, staged.set)
        stager = Stager(self._io, _Frames(self._pool, queue, wake))
        sending = self._thread.post(self._send(queue, staged, complete))
        for layer in range(LAYERS):
            wait_for_layer(began_s, layer, job.layer_ms)
            computed_s = time.monotonic()
            for first, count in frames_of(self._io, job.num_blocks):
                stager.stage(name, layer, first, ids[first : first + count], stays=True)
        complete.set()
        self._thread.loop.call_soon_threadsafe(staged.set)
        sending.result(WAIT_S)
        return Span(computed_s if job.layer_ms else began_s)

    async def _send(self, queue: SendQueue, staged: asyncio.Event, complete: threading.Event) -> None:
        stream = await self._transport.connect(self._peer, WAIT_S)
        landing = asyncio.create_task(_read_acks(stream, queue))
        try:
            while True:
                staged.clear()
                is_complete = complete.is_set()  # read before the queue
                while frames := queue.take(BATCH_BYTES):
                    await stream.write_blocks(frames)
                if is_complete:
                    break
                await staged.wait()
            await stream.write(control_frame(Kind.END, count=queue.num_frames))
            await landing
        finally:
            landing.cancel()
            stream.close()
            queue.close()


async def _read_acks(stream: Outgoing, queue: SendQueue) -> None:
    while True:
        header, _ = read_control(await stream.read())
        queue.acknowledge(header.num_blocks)
        if header.kind is Kind.LANDED:
            return


class _Receiver(_End):
    def __init__(self, cache: Bytes, options: dict[str, str], staging_bytes: int) -> None:
        super().__init__(cache, options, staging_bytes)
        self.address = self._thread.call(self._transport.listen("127.0.0.1", self._serve))
        self._job = Job(0, 0, 0)
        self._landed = threading.Event()

    def prepare(self, job: Job) -> None:
        self._job = job
        self._landed.clear()

    def run(self, job: Job) -> Span:
        if not self._landed.wait(WAIT_S):
            raise TimeoutError("the sender's blocks did not land")
        return Span(ended_s=time.monotonic())

    async def _serve(self, stream: Incoming) -> None:
        seed, ids, count = transfer_seed(str(self._job.number)), self._job.target.tolist(), 0
        while (header := await stream.header()).kind is Kind.BLOCKS:
            blocks = ids[header.first_block : header.first_block + header.num_blocks]
            num_layers = header.size // (len(blocks) * self._io.block_bytes)
            layers = range(header.layer, header.layer + num_layers)
            rows = self._io.rows(layers, blocks)
            verify_blocks(header, seed, rows, digest=await stream.land(header, rows))
            count += 1
            await stream.write(control_frame(Kind.ACK, count=count))
        await stream.payload(header)
        self._landed.set()
        await stream.write(control_frame(Kind.LANDED, count=count))
