"""The ways from this engine to its peers: asks each what it listens on, chooses, connects, counts.

Owns what is known of the peers and the counts by transport. Must not know what a hand-over is, nor sockets: transports
connect, kv_transfer.choice chooses, and a function that is handed in asks.

A peer is named by the address of its gRPC service. It is asked once, and again after anything failed with it: it may
have been replaced by another process at the same address, whose epoch then differs, and whose speeds count from zero.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, Protocol

from core.errors import KVTransferError, PeerMismatch, TransferAborted, TransferTimeout, Unauthorized
from kv_transfer.choice import AUTO, Choice
from kv_transfer.transport import Outgoing, Transport

logger = logging.getLogger(__name__)
ASK_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 5.0  # for one transport; the hand-over's own time may end before
MAX_PEERS: Final = 1024  # whose answers and speeds are kept
_SAME_HOST_ONLY: Final = frozenset({"shm"})
_GRPC: Final = "grpc"  # every peer listens on it: it is what peers are named by


class Offered(Protocol):
    """What a peer says of itself."""

    @property
    def host(self) -> str:
        """What two engines that can share memory have in common."""
        ...

    @property
    def epoch(self) -> int:
        """Another one: another process."""
        ...

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where it listens, by name of the transport."""
        ...


Ask = Callable[[str], Awaitable[Offered]]  # by the peer's address; raises a KVTransferError


@dataclass(frozen=True, slots=True)
class _GrpcOnly:
    """A peer that need not be asked."""

    addresses: Mapping[str, str]
    host: str = ""
    epoch: int = 0


@dataclass(slots=True)
class Count:
    """What went over one transport, to all peers."""

    bytes: int = 0
    handovers: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Peer:
    offered: Offered | None = None  # None: it is to be asked
    choice: Choice | None = None  # of the epoch it last told
    epoch: int = 0
    asking: asyncio.Task[Offered] | None = None  # shared by all who want to know


@dataclass(slots=True)
class _Attempt:
    """One call of `open`."""

    timeout_s: float
    num_bytes: int | None
    excluded: set[str]
    unreachable: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


class MeasuredWays:
    """Opens streams over the transport that is best for each peer; implements kv_transfer.transport.Ways."""

    def __init__(
        self,
        transports: Sequence[Transport],
        ask: Ask,
        *,
        host: str,
        transport: str = AUTO,
        clock_s: Callable[[], float] = time.monotonic,
        max_peers: int = MAX_PEERS,
    ) -> None:
        self._transports = transports  # the owner's own list: it takes out those that cannot listen
        self._ask = ask
        self._host = host
        self._transport = transport
        self._clock_s = clock_s
        self._max_peers = max_peers
        self._left_out: frozenset[str] = frozenset()  # by name
        self._peers: OrderedDict[str, _Peer] = OrderedDict()  # least recently used first
        self.counts = {transport.name: Count() for transport in transports}

    async def open(
        self, peer: str, *, attempt: int, failed: frozenset[str], timeout_s: float, num_bytes: int | None = None
    ) -> tuple[str, Outgoing]:
        """Open a stream for one attempt at a hand-over; return the transport's name and the stream.

        `failed` have failed in this hand-over and are taken again only when no other is left. A transport that does
        not connect is given up for the next one. Raises PeerMismatch when the two sides have no transport in common,
        TransferAborted or TransferTimeout when none connects.
        """
        trying = _Attempt(timeout_s, num_bytes, set(failed))
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    opened = await self._open_next(peer, trying)
                    if opened is not None:
                        if attempt:
                            logger.info("hand-over to %s goes on over %s (attempt %d)", peer, opened[0], attempt + 1)
                        return opened
        except TimeoutError as exc:
            raise TransferTimeout(f"no way to {peer} opened within {timeout_s:g} s{_why(trying)}") from exc

    def done(self, peer: str, name: str, num_bytes: int, seconds: float) -> None:
        """Note that a hand-over landed over a transport; `seconds` without waiting for prefill to compute."""
        count = self.counts[name]
        count.bytes += num_bytes
        count.handovers += 1
        known = self._peers.get(peer)
        if known is not None and known.choice is not None:
            known.choice.done(name, num_bytes, seconds)

    def failed(self, peer: str, name: str) -> None:
        """Note that a transport failed, connecting or in mid-transfer; the peer is asked anew."""
        self.counts[name].failures += 1
        known = self._peers.get(peer)
        if known is not None and known.choice is not None:
            known.choice.failed(name)
            known.offered = None

    def leave_out(self, names: frozenset[str]) -> None:
        """Use these transports no more, and all others again; what was measured counts no longer."""
        if names != self._left_out:
            self._left_out = names
            for known in self._peers.values():
                known.offered = known.choice = None

    def stats(self) -> dict[str, object]:
        """Report counts by transport, and by peer what each transport does there."""
        return {
            "transports": {name: asdict(count) for name, count in self.counts.items()},
            "peers": {
                peer: {"epoch": known.epoch, "transports": [asdict(report) for report in known.choice.reports()]}
                for peer, known in self._peers.items()
                if known.choice is not None
            },
        }

    async def close(self) -> None:
        """Stop asking; the transports are their owner's to close."""
        asking = [known.asking for known in self._peers.values() if known.asking is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        self._peers.clear()

    async def _open_next(self, peer: str, trying: _Attempt) -> tuple[str, Outgoing] | None:
        """Try one transport; None when it did not connect and another may."""
        choice, offered = await self._know(peer)
        name = choice.pick(excluded=trying.excluded, num_bytes=trying.num_bytes)
        if name is None and trying.excluded != trying.unreachable:
            trying.excluded = set(trying.unreachable)
            name = choice.pick(excluded=trying.excluded, num_bytes=trying.num_bytes)
        if name is None:
            raise self._nothing_left(peer, offered, trying)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return name, await self._named(name).connect(offered.addresses.get(name, peer), trying.timeout_s)
        except (KVTransferError, Unauthorized, TimeoutError, OSError) as exc:
            logger.warning("no way to %s over %s: %s: %s", peer, name, type(exc).__name__, exc)
            self.failed(peer, name)
            trying.excluded.add(name)
            trying.unreachable.add(name)
            trying.problems.append(f"{name}: {exc or type(exc).__name__}")
            return None

    def _nothing_left(self, peer: str, offered: Offered, trying: _Attempt) -> KVTransferError:
        usable = self._usable(offered)
        if self._transport != AUTO and self._transport not in usable:
            return PeerMismatch(
                f"kv.transport is {self._transport}, but {peer} cannot be reached by it from here; it can by "
                f"{', '.join(sorted(usable)) or 'nothing'}; name one of these, or auto"
            )
        if not usable:
            return PeerMismatch(f"{peer} listens on {', '.join(offered.addresses)}, none of which works from here")
        return TransferAborted(f"no transport to {peer} is left; what failed is tried again after a rest{_why(trying)}")

    async def _know(self, peer: str) -> tuple[Choice, Offered]:
        """Return what is known of a peer, asking it first if need be; concurrent callers share one question."""
        known = self._peers.get(peer)
        if known is None:
            known = self._peers[peer] = _Peer()
            while len(self._peers) > self._max_peers:
                self._peers.popitem(last=False)
        self._peers.move_to_end(peer)
        while known.offered is None or known.choice is None:
            if known.asking is None:
                known.asking = asyncio.create_task(self._learn(peer, known), name=f"kv-ask-{peer}")
                known.asking.add_done_callback(_retrieve)
            # Shielded: one who gives up does not take the answer from the others.
            await asyncio.shield(known.asking)
        return known.choice, known.offered

    async def _learn(self, peer: str, known: _Peer) -> Offered:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                offered = await self._answer(peer)
        except TimeoutError as exc:
            raise TransferTimeout(f"{peer} did not say within {ASK_TIMEOUT_S:g} s what it listens on") from exc
        finally:
            known.asking = None
        if known.choice is None or known.epoch != offered.epoch:
            known.choice = Choice(self._usable(offered), clock_s=self._clock_s, transport=self._transport)
        known.offered, known.epoch = offered, offered.epoch
        return offered

    async def _answer(self, peer: str) -> Offered:
        if [transport.name for transport in self._transports] == [_GRPC]:
            return _GrpcOnly({_GRPC: peer})
        return await self._ask(peer)

    def _named(self, name: str) -> Transport:
        return next(transport for transport in self._transports if transport.name == name)

    def _usable(self, offered: Offered) -> tuple[str, ...]:
        """List the transports that both ends can do."""
        names = [transport.name for transport in self._transports if transport.name not in self._left_out]
        shared = [name for name in names if name in offered.addresses or name == _GRPC]
        return tuple(name for name in shared if name not in _SAME_HOST_ONLY or offered.host == self._host)


def _retrieve(asking: asyncio.Task[Offered]) -> None:
    """Take an error that all who waited for the answer may have left."""
    if not asking.cancelled():
        asking.exception()


def _why(trying: _Attempt) -> str:
    return f" ({'; '.join(trying.problems)})" if trying.problems else ""
