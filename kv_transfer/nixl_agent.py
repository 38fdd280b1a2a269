"""NIXL's agent in this process: what memory it knows, which peers, and reads in progress.

Its progress thread stays off: it spins on a whole core as long as the agent lives (measured: 1.0 core each). Whoever
waits for a read drives it along instead, and so does the end that is read, while somebody may be reading. The library
is loaded by the first use; `NIXL_LOG_LEVEL` and UCX's variables are the user's.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import hashlib
import importlib.util
import logging
import mmap
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from core.errors import ConfigError, TransferAborted, TransferTimeout
from kv_transfer.control_link import Link

logger = logging.getLogger(__name__)
STALL_TIMEOUT_S: Final = 30.0  # for one payload to pass
_LET_GO_TIMEOUT_S: Final = 2.0  # for a read that was given up to leave our memory
_BOUNCE_BYTES: Final = 8 << 20  # for rows that are not in registered memory
_MAX_PEERS: Final = 64  # beyond those that are in use
_FIRST_POLL_S, _LAST_POLL_S = 20e-6, 2e-3  # NIXL has no event to wait for


def missing_nixl() -> str | None:
    """Say why NIXL cannot be had here; None when it can."""
    if importlib.util.find_spec("nixl") is None:
        return "the NIXL library is not installed (pip install nixl)"
    return None


@dataclass(slots=True)
class _Peer:
    """Another agent; restarted, it is another one again."""

    name: str
    links: int = 0  # that use it


class NixlAgent:
    """One NIXL agent, used from one event loop."""

    def __init__(self, regions: Sequence[memoryview]) -> None:
        """Load NIXL and register memory. Raises ConfigError."""
        try:
            from nixl._api import nixl_agent, nixl_agent_config
        except ImportError as exc:
            raise ConfigError(
                "kv.transport: nixl needs the NIXL library (pip install nixl); or set kv.transport to auto"
            ) from exc
        logging.getLogger("nixl").setLevel(logging.WARNING)  # it greets on standard output
        try:
            config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent: Any = nixl_agent(secrets.token_hex(8), config)
        except Exception as exc:  # the library's errors have no common base
            raise ConfigError(
                f"kv.transport: nixl cannot be used: NIXL finds no UCX here ({exc}); set kv.transport to auto"
            ) from exc
        self._peers: dict[bytes, _Peer] = {}  # by digest of what they said of themselves, least recently used first
        self._bounce = memoryview(mmap.mmap(-1, _BOUNCE_BYTES))
        self._bounce_lock = asyncio.Lock()
        self._starts: list[int] = []  # of registered regions, in order; `_ends` are theirs
        self._ends: list[int] = []
        self._registered: list[Any] = []
        self._metadata: bytes | None = None
        for region in (self._bounce, *regions):
            self.register(region)
        self._driving: asyncio.Task[None] | None = None
        self._read_from: set[object] = set()  # all and only those whose peers may be reading our memory

    def register(self, region: memoryview) -> None:
        """Let NIXL write to a region, or peers read it that know of it by `metadata`."""
        start = address_of(region)
        self._registered.append(self._agent.register_memory([(start, region.nbytes, 0, "")], "DRAM"))
        index = bisect.bisect(self._starts, start)
        self._starts.insert(index, start)
        self._ends.insert(index, start + region.nbytes)
        self._metadata = None

    @property
    def metadata(self) -> bytes:
        """What a peer needs to read the regions that are registered so far."""
        if self._metadata is None:
            self._metadata = bytes(self._agent.get_agent_metadata())
        return self._metadata

    def meet(self, metadata: bytes) -> str:
        """Learn to reach a peer's memory; return its name. Raises TransferAborted."""
        digest = hashlib.blake2b(metadata, digest_size=16).digest()
        peer = self._peers.pop(digest, None) or _Peer(self._add(metadata))
        self._peers[digest] = peer  # as the one used last
        peer.links += 1
        self._forget_idle()
        return peer.name

    def part(self, name: str) -> None:
        """Note that one of a peer's links has ended; what NIXL opened for it is kept for the next."""
        peer = next((peer for peer in self._peers.values() if peer.name == name), None)
        if peer is not None:
            peer.links -= 1

    def _add(self, metadata: bytes) -> str:
        try:
            name = self._agent.add_remote_agent(metadata)
        except Exception as exc:
            raise TransferAborted(f"NIXL does not understand the peer ({exc})") from exc
        return name.decode() if isinstance(name, bytes) else str(name)

    def _forget_idle(self) -> None:
        """Forget the peers that were used longest ago, beyond a number: each has connections of UCX's."""
        idle = [digest for digest, peer in self._peers.items() if not peer.links]
        for digest in idle[: max(0, len(self._peers) - _MAX_PEERS)]:
            with contextlib.suppress(Exception):
                self._agent.remove_remote_agent(self._peers.pop(digest).name)

    async def read(self, link: Link, peer: str, place: int, rows: Sequence[memoryview]) -> None:
        """Read what lies at `place` in the peer's process into rows. Raises TransferAborted or TransferTimeout."""
        if all(self._is_registered(row) for row in rows):
            await self._pull(link, peer, place, rows)
            return
        async with self._bounce_lock:
            for row in rows:
                for start in range(0, row.nbytes, _BOUNCE_BYTES):
                    piece = row.cast("B")[start : start + _BOUNCE_BYTES]
                    await self._pull(link, peer, place, [self._bounce[: piece.nbytes]])
                    piece[:] = self._bounce[: piece.nbytes]
                    place += piece.nbytes

    def drive(self, who: object) -> None:
        """See to it that peers get on with reading from us, until `rest` is called with the same object."""
        self._read_from.add(who)
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._drive(), name="kv-nixl-drive")

    def rest(self, who: object) -> None:
        """Nobody reads on behalf of this object any more; idempotent."""
        self._read_from.discard(who)

    async def _drive(self) -> None:
        pause = _Pause()
        while self._read_from and self._agent is not None:
            if self._agent.get_new_notifs():  # makes UCX move on, whatever it returns
                pause = _Pause()
            await pause.next()

    def close(self) -> None:
        """Give memory and connections back."""
        self._read_from.clear()
        if self._driving is not None:
            self._driving.cancel()
        for peer in self._peers.values():
            with contextlib.suppress(Exception):
                self._agent.remove_remote_agent(peer.name)
        self._peers.clear()
        for registered in self._registered:
            with contextlib.suppress(Exception):
                self._agent.deregister_memory(registered)
        self._registered.clear()
        self._agent = None  # its threads and sockets end with it

    def _is_registered(self, row: memoryview) -> bool:
        start = address_of(row)
        index = bisect.bisect(self._starts, start) - 1
        return index >= 0 and start + row.nbytes <= self._ends[index]

    async def _pull(self, link: Link, peer: str, place: int, rows: Sequence[memoryview]) -> None:
        sizes = np.array([row.nbytes for row in rows], dtype=np.uint64)
        ours = np.zeros((len(rows), 3), dtype=np.uint64)  # address, bytes, device
        ours[:, 0] = [address_of(row) for row in rows]
        ours[:, 1] = sizes
        theirs = ours.copy()
        theirs[:, 0] = np.uint64(place) + np.cumsum(sizes) - sizes
        agent = self._agent
        try:
            handle = agent.initialize_xfer(
                "READ", agent.get_xfer_descs(ours, "DRAM"), agent.get_xfer_descs(theirs, "DRAM"), peer
            )
        except Exception as exc:
            raise TransferAborted(f"NIXL refused a read ({exc})") from exc
        try:
            await self._finish(link, handle)
        finally:
            await self._let_go(peer, handle)

    async def _finish(self, link: Link, handle: Any) -> None:
        pause = _Pause()
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                state = self._agent.transfer(handle)
                while state == "PROC":
                    if link.lost.is_set():
                        raise TransferAborted("the peer died")
                    await pause.next()
                    state = self._agent.check_xfer_state(handle)
        except TimeoutError as exc:
            raise TransferTimeout(f"NIXL read nothing for {STALL_TIMEOUT_S:g} s") from exc
        except (TransferAborted, asyncio.CancelledError):
            raise
        except Exception as exc:
            raise TransferAborted(f"a read by NIXL failed ({exc})") from exc
        if state != "DONE":
            raise TransferAborted("a read by NIXL failed")

    async def _let_go(self, peer: str, handle: Any) -> None:
        """Release a handle; one that cannot be cancelled is waited for, since it writes to our memory."""
        for _ in range(int(_LET_GO_TIMEOUT_S / _LAST_POLL_S)):
            try:
                self._agent.release_xfer_handle(handle)
                return
            except Exception:
                await asyncio.sleep(_LAST_POLL_S)
        logger.error("NIXL did not let go of a read within %g s; its peer is disconnected", _LET_GO_TIMEOUT_S)
        with contextlib.suppress(Exception):
            self._agent.remove_remote_agent(peer)  # with its connections; what is read from it then ends


class _Pause:
    """Waits a little longer each time."""

    def __init__(self) -> None:
        self._delay_s = _FIRST_POLL_S

    async def next(self) -> None:
        await asyncio.sleep(self._delay_s)
        self._delay_s = min(2 * self._delay_s, _LAST_POLL_S)


def address_of(view: memoryview) -> int:
    """Tell where a view's bytes are in this process."""
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)
