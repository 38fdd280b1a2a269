"""The transports that the contract is tested on, and the two ends of a stream as a test holds them."""

from __future__ import annotations

import asyncio
import atexit
import functools
import mmap
import os
import shutil
import socket
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from core.component_tls import ComponentTLS
from kv_transfer.frames import blocks_header
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.nixl_agent import missing_nixl
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.shared_cache import OFFSET, SharedCache
from kv_transfer.shm_transport import SCHEME, ShmTransport
from kv_transfer.staging import StagingPool
from kv_transfer.tcp_transport import TcpTransport
from kv_transfer.transport import Incoming, Outgoing, StagedFrame, Transport

TOKEN = "secret"
WAIT_S = 20.0  # for what takes milliseconds on a machine that is not busy
_ROOT = Path(__file__).resolve().parents[3]
_CERTIFICATES = "BATON_TEST_CERTIFICATES"  # the folder, for processes that a test starts
PAGE_BYTES = mmap.PAGESIZE
_IN_CACHE: weakref.WeakSet[StagingPool] = weakref.WeakSet()  # whose payloads lie in the arena instead
SEED = 7  # of checksums, which no transport looks at


def dial_tcp(address: str) -> socket.socket:
    """Connect as a stranger."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def dial_unix(address: str) -> socket.socket:
    """Connect as a stranger of the same user."""
    stranger = socket.socket(socket.AF_UNIX)
    stranger.settimeout(WAIT_S)
    stranger.connect(address.removeprefix(SCHEME))
    return stranger


@dataclass(frozen=True, slots=True)
class Case:
    """One transport: how an end with a token and staging memory is made, and how a stranger reaches its address."""

    make: Callable[[str, StagingPool], Transport]
    dial: Callable[[str], socket.socket] = dial_tcp
    missing: str | None = None  # why it cannot be tested here
    in_cache: bool = False  # payloads lie in a cache that the peer reads, not in staging memory


async def _no_control(verb: str, arguments: dict[str, str]) -> dict[str, object]:
    raise ValueError(verb)


@functools.cache
def _certificates() -> ComponentTLS:
    """Return what one authority issued, to this process and the peers that it starts."""
    folder = os.environ.setdefault(_CERTIFICATES, "") or tempfile.mkdtemp()
    if not os.environ[_CERTIFICATES]:
        atexit.register(shutil.rmtree, folder)
        os.environ[_CERTIFICATES] = folder
        from tests.support.certificates import Authority

        return Authority(Path(folder)).component("end")
    return ComponentTLS(*(str(Path(folder, name)) for name in ("authority.crt", "end.crt", "end.key")))


def _gloo(token: str, _: StagingPool) -> Transport:
    from kv_transfer.collective_transport import CollectiveTransport  # with torch, most of the start of other peers

    return CollectiveTransport("gloo", token)


class Arena:
    """A cache of which each block is a page; payloads lie in it page by page, the last page first."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)
        self.shared = SharedCache([memoryview(self.memory)], PAGE_BYTES)
        self._next = 0

    def put(self, payload: bytes) -> CachedPayload:
        """Write a payload where none of those put of late lies."""
        size = -(-len(payload) // PAGE_BYTES) * PAGE_BYTES
        if self._next + size > len(self.memory):
            self._next = 0
        start, self._next = self._next, self._next + size
        step = PAGE_BYTES if len(payload) == size else len(payload)
        starts = range(start, start + len(payload), step)[::-1]
        for index, at in enumerate(starts):
            self.memory[at : at + step] = payload[index * step : (index + 1) * step]
        return CachedPayload(len(payload), b"".join(map(OFFSET.pack, starts)))


@dataclass(frozen=True, slots=True)
class CachedPayload:
    """What a transport asks kv_transfer.cached_blocks.CachedBlocks for."""

    size_bytes: int
    places: bytes

    def offsets(self) -> bytes:
        return self.places


@functools.cache
def _arena() -> Arena:
    return Arena(160 << 20)


def _shm_with_cache(token: str, staging: StagingPool) -> Transport:
    return ShmTransport(token, staging, Path(tempfile.gettempdir()), _arena().shared)


TRANSPORTS = {
    "tcp": Case(lambda token, _: TcpTransport(token)),
    "tcp-1": Case(lambda token, _: TcpTransport(token, connections=1)),
    "grpc": Case(lambda token, _: GrpcTransport(_no_control, token=token)),
    "grpc-tls": Case(lambda token, _: GrpcTransport(_no_control, token=token, tls=_certificates())),
    "shm": Case(lambda token, staging: ShmTransport(token, staging, Path(tempfile.gettempdir())), dial_unix),
    "shm-cache": Case(_shm_with_cache, dial_unix, in_cache=True),
    "gloo": Case(_gloo),
    "nixl": Case(lambda token, staging: NixlTransport(token, staging), missing=missing_nixl()),
}
CASES = [
    pytest.param(name, marks=pytest.mark.skipif(case.missing is not None, reason=str(case.missing)))
    for name, case in TRANSPORTS.items()
]


def stage(pool: StagingPool, payload: bytes, *, layer: int = 0) -> StagedFrame:
    """Stage one BLOCKS frame of one block; its memory is given back with the pool."""
    if pool in _IN_CACHE:
        cached: Any = _arena().put(payload)
        return StagedFrame(blocks_header(SEED, layer, 0, 1, memoryview(payload)), memoryview(b""), 0, cached=cached)
    segment = pool.take(len(payload))
    assert segment is not None
    segment.view[:] = payload
    header = blocks_header(SEED, layer, 0, 1, segment.view)
    return StagedFrame(header, segment.view, segment.offset)


async def take_blocks(stream: Incoming, cuts: Sequence[int] = ()) -> bytes:
    """Land the next frame in rows that end at `cuts` and at its end."""
    header = await stream.header()
    data = bytearray(header.size)
    ends = [*sorted(cut % (header.size + 1) for cut in cuts), header.size]
    starts = [0, *ends[:-1]]
    await stream.land(header, [memoryview(data)[a:b] for a, b in zip(starts, ends, strict=True)])
    return bytes(data)


@dataclass
class Ends:
    """A transport that listens and one that connects, with every stream that came in."""

    case: Case
    pool: StagingPool
    token: str = TOKEN
    accepted: asyncio.Queue[Incoming] = field(default_factory=asyncio.Queue)

    async def start(self) -> None:
        self.listening = self.case.make(TOKEN, self.pool)
        self.connecting = self.case.make(self.token, self.pool)
        self.address = await self.listening.listen("127.0.0.1", self._serve)

    async def close(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.connecting.close()
            await self.listening.close()

    async def open(self) -> tuple[Outgoing, Incoming]:
        outgoing = await self.connecting.connect(self.address, WAIT_S)
        return outgoing, await self.accepted.get()

    async def _serve(self, stream: Incoming) -> None:
        served = Served(stream)
        self.accepted.put_nowait(served)
        await served.closed.wait()


class Served:
    """An Incoming whose serving ends as the test closes it."""

    def __init__(self, stream: Incoming) -> None:
        self.closed = asyncio.Event()
        self._stream = stream
        self.header, self.payload, self.land, self.write = stream.header, stream.payload, stream.land, stream.write

    def close(self) -> None:
        self._stream.close()
        self.closed.set()


@asynccontextmanager
async def ends(case: Case, *, staging_bytes: int = 8 << 20, token: str = TOKEN) -> AsyncIterator[Ends]:
    """Open both ends for a test that is through within WAIT_S; afterwards no task and no descriptor is left."""
    pool = StagingPool(staging_bytes)
    if case.in_cache:
        _arena()
        _IN_CACHE.add(pool)
    num_descriptors, tasks = count_descriptors(), asyncio.all_tasks()
    both = Ends(case, pool, token)
    try:
        async with asyncio.timeout(6 * WAIT_S):
            await both.start()
            try:
                yield both
            finally:
                await both.close()
            await _until(lambda: count_descriptors() <= num_descriptors and asyncio.all_tasks() <= tasks)
    finally:
        pool.close()


async def _until(condition: Callable[[], bool]) -> None:
    """Check what other tasks bring about, at their pace, within a bound."""
    for _ in range(int(WAIT_S / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("tasks or descriptors were left behind")


def count_descriptors() -> int:
    """Count what this process has open, without what gRPC makes to wait on and keeps for the next use."""
    return sum(not _waited_on(descriptor) for descriptor in os.listdir("/proc/self/fd"))


def _waited_on(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") in ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")
    except FileNotFoundError:  # that of the listing itself
        return False


@asynccontextmanager
async def peer_process(name: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run peer.py with a transport, to be killed; its first line has been printed when it starts to wait."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.kv_transfer.contract.peer",
        name,
        *arguments,
        cwd=_ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
