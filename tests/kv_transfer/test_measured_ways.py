"""Peers are asked once, the best transport that connects is taken, and what fails is gone around."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from core.errors import PeerMismatch, TransferAborted, TransferTimeout, Unauthorized
from kv_transfer.measured_ways import MeasuredWays
from kv_transfer.transport import Outgoing, Serve, Transport

NONE: frozenset[str] = frozenset()
PEER = "10.0.0.2:7000"


class Stream:
    """A stream that carries nothing; it knows what it was opened by."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def write(self, message: bytes) -> None:
        raise NotImplementedError

    async def write_blocks(self, frames: object) -> None:
        raise NotImplementedError

    async def read(self) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Answer:
    """What a peer says of itself."""

    host: str
    epoch: int
    addresses: Mapping[str, str]


@dataclass
class Net:
    """A transport whose connects a test lets fail or hang, by address."""

    name: str
    broken: dict[str, Exception] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    connects: list[str] = field(default_factory=list)
    timeouts_s: list[float] = field(default_factory=list)

    async def listen(self, host: str, serve: Serve) -> str:
        raise NotImplementedError

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        self.connects.append(address)
        self.timeouts_s.append(timeout_s)
        if address in self.hanging:
            await asyncio.Event().wait()
        if address in self.broken:
            raise self.broken[address]
        return Stream(address)

    async def close(self) -> None:
        raise NotImplementedError


@dataclass
class Site:
    """Transports of one engine and the peers it can ask."""

    answers: dict[str, Answer]
    nets: dict[str, Net] = field(default_factory=lambda: {name: Net(name) for name in ("shm", "tcp", "grpc")})
    asked: list[str] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    now_s: float = 0.0

    def ways(self, *, transport: str = "auto", max_peers: int = 8) -> MeasuredWays:
        self.may_answer.set()
        return MeasuredWays(
            list(self.nets.values()),
            self.ask,
            host="here",
            transport=transport,
            clock_s=lambda: self.now_s,
            max_peers=max_peers,
        )

    async def ask(self, peer: str) -> Answer:
        self.asked.append(peer)
        self.was_asked.set()
        await self.may_answer.wait()
        if peer not in self.answers:
            raise TransferAborted("nobody there")
        return self.answers[peer]


def answer(*, host: str = "here", epoch: int = 1, **addresses: str) -> Answer:
    return Answer(host, epoch, addresses)


def site(**addresses: str) -> Site:
    return Site({PEER: answer(**addresses)})


async def test_a_peer_is_asked_once_however_many_want_to_know() -> None:
    here = site(shm="unix:/s", tcp="a:1")
    ways = here.ways()
    here.may_answer.clear()
    opening = [asyncio.create_task(ways.open(PEER, attempt=0, failed=NONE, timeout_s=10)) for _ in range(5)]
    await here.was_asked.wait()
    opening[0].cancel()  # who gives up does not take the answer from the others
    await asyncio.gather(opening[0], return_exceptions=True)
    here.may_answer.set()
    opened = await asyncio.gather(*opening[1:])
    assert {name for name, _ in opened} == {"shm"}
    await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10)
    assert here.asked == [PEER]
    await ways.close()


async def test_shared_memory_needs_one_host_and_grpc_is_always_there() -> None:
    here = Site({PEER: answer(host="there", shm="unix:/s", tcp="a:1"), "old:1": answer(host="there")})
    ways = here.ways()
    assert (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "tcp"
    name, stream = await ways.open("old:1", attempt=0, failed=NONE, timeout_s=10)
    assert (name, stream.address) == ("grpc", "old:1")  # type: ignore[attr-defined]


async def test_transports_can_be_left_out_and_taken_back() -> None:
    here = site(shm="unix:/s", tcp="a:1")
    ways = here.ways()

    async def taken() -> str:
        return (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0]

    assert await taken() == "shm"
    ways.leave_out(frozenset({"shm", "grpc"}))
    ways.done(PEER, "shm", 1, 1.0)  # of a hand-over that was under way
    assert await taken() == "tcp"
    ways.leave_out(frozenset({"shm", "tcp", "grpc"}))
    with pytest.raises(PeerMismatch):
        await taken()
    ways.leave_out(NONE)
    assert await taken() == "shm"


@pytest.mark.parametrize("problem", [TransferAborted("refused"), Unauthorized("no"), TransferTimeout("late")])
async def test_what_does_not_connect_is_given_up_for_the_next(problem: Exception) -> None:
    here = site(shm="unix:/s", tcp="a:1")
    here.nets["shm"].broken["unix:/s"] = problem
    ways = here.ways()
    assert (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "tcp"
    assert ways.counts["shm"].failures == 1
    # It rests: the next hand-over does not even try it, and the peer was asked whether it is still the same.
    assert (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "tcp"
    assert here.nets["shm"].connects == ["unix:/s"]
    assert here.asked == [PEER, PEER]


async def test_a_hand_over_goes_on_over_what_has_not_failed_in_it() -> None:
    here = site(shm="unix:/s", tcp="a:1")
    ways = here.ways()
    failed: set[str] = set()
    taken = []
    for attempt in range(3):
        name, _ = await ways.open(PEER, attempt=attempt, failed=frozenset(failed), timeout_s=10)
        ways.failed(PEER, name)
        failed.add(name)
        taken.append(name)
    assert taken == ["shm", "tcp", "grpc"]
    # Nothing else is left, so what works soonest again is tried again; but nothing that does not even connect.
    assert (await ways.open(PEER, attempt=3, failed=frozenset(failed), timeout_s=10))[0] == "shm"
    for net, address in (("shm", "unix:/s"), ("tcp", "a:1"), ("grpc", PEER)):
        here.nets[net].broken[address] = TransferAborted("refused")
    with pytest.raises(TransferAborted, match=r"no transport to .* is left.*refused"):
        await ways.open(PEER, attempt=4, failed=frozenset(failed), timeout_s=10)


async def test_a_peer_that_was_replaced_is_asked_anew_and_its_speeds_count_from_zero() -> None:
    here = site(tcp="a:1")
    ways = here.ways()
    name, _ = await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10)
    ways.done(PEER, name, 2 << 20, 0.01)
    here.nets["tcp"].broken["a:1"] = TransferAborted("refused")
    here.answers[PEER] = answer(epoch=2, tcp="a:2")
    assert (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "grpc"
    name, stream = await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10, num_bytes=0)
    assert stream.address in ("a:2", PEER)  # type: ignore[attr-defined]
    peers = ways.stats()["peers"]
    assert isinstance(peers, dict)
    assert peers[PEER]["epoch"] == 2
    assert [way["large_bytes_per_s"] for way in peers[PEER]["transports"]] == [None, None]
    assert [way["failures"] for way in peers[PEER]["transports"]] == [0, 0]


async def test_a_named_transport_that_the_peer_lacks_is_an_error_that_says_what_it_has() -> None:
    ways = Site({PEER: answer(host="there", shm="unix:/s", tcp="a:1")}).ways(transport="shm")
    with pytest.raises(PeerMismatch, match=r"kv\.transport is shm.*it can by grpc, tcp"):
        await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10)


async def test_a_named_transport_that_fails_leaves_the_hand_over_to_grpc() -> None:
    here = site(shm="unix:/s", tcp="a:1")
    here.nets["tcp"].broken["a:1"] = TransferAborted("refused")
    ways = here.ways(transport="tcp")
    for _ in range(2):
        assert (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "grpc"
    assert here.nets["tcp"].connects == ["a:1", "a:1"]
    assert here.nets["shm"].connects == []


async def test_the_hand_overs_own_time_bounds_everything() -> None:
    here = site(tcp="a:1")
    here.nets["tcp"].hanging.add("a:1")
    ways = here.ways()
    with pytest.raises(TransferTimeout, match=r"within 0\.01 s"):
        await ways.open(PEER, attempt=0, failed=NONE, timeout_s=0.01)
    here.may_answer.clear()
    with pytest.raises(TransferTimeout, match=r"within 0\.01 s"):
        await ways.open("silent:1", attempt=0, failed=NONE, timeout_s=0.01)
    await ways.close()
    assert len(asyncio.all_tasks()) == 1


async def test_a_peer_that_cannot_be_asked_fails_the_hand_over_and_is_asked_again() -> None:
    here = Site({})
    ways = here.ways()
    with pytest.raises(TransferAborted, match="nobody there"):
        await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10)
    here.answers[PEER] = answer(tcp="a:1")
    assert (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "tcp"


async def test_only_so_many_peers_are_remembered() -> None:
    peers = [f"peer:{number}" for number in range(5)]
    here = Site({peer: answer(tcp=f"{peer}0") for peer in peers})
    ways = here.ways(max_peers=3)
    for peer in peers:
        name, _ = await ways.open(peer, attempt=0, failed=NONE, timeout_s=10)
    kept = ways.stats()["peers"]
    assert isinstance(kept, dict)
    assert list(kept) == peers[2:]
    ways.done(peers[0], name, 1 << 20, 0.1)  # it was forgotten meanwhile, its bytes are not
    assert ways.counts["tcp"].bytes == 1 << 20


async def test_with_grpc_alone_nobody_is_asked() -> None:
    here = site(tcp="a:1")
    here.nets = {"grpc": Net("grpc")}
    assert (await here.ways().open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "grpc"
    assert here.asked == []


async def test_a_transport_that_cannot_listen_here_is_not_taken() -> None:
    here = site(shm="unix:/s", tcp="a:1")
    transports: list[Transport] = list(here.nets.values())
    here.may_answer.set()
    ways = MeasuredWays(transports, here.ask, host="here")
    transports.remove(here.nets["shm"])  # as the endpoint does after it has tried to listen
    assert (await ways.open(PEER, attempt=0, failed=NONE, timeout_s=10))[0] == "tcp"


async def test_what_connects_learns_how_long_the_stream_may_live() -> None:
    here = site(tcp="a:1")
    await here.ways().open(PEER, attempt=0, failed=NONE, timeout_s=77)
    assert here.nets["tcp"].timeouts_s == [77]
