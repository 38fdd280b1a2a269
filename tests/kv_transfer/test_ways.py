"""Ways are tried in the order of the configuration; what failed in a hand-over is not tried again in it."""

from __future__ import annotations

import pytest

from core.errors import ConfigError, TransferAborted
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Outgoing, Serve
from kv_transfer.ways import OrderedWays, PeerTransports, TransportContext, host_identity, make_transports
from tests.support.pipe import Pipe


class Road:
    """A transport that notes where it was to go."""

    def __init__(self, name: str, *, is_blocked: bool = False) -> None:
        self.name = name
        self.is_blocked = is_blocked
        self.asked: list[str] = []

    async def listen(self, host: str, serve: Serve) -> str:
        return host

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        self.asked.append(address)
        if self.is_blocked:
            raise TransferAborted("blocked")
        return Pipe(None)

    async def close(self) -> None:
        return


class Directory:
    """What peers say of themselves, and how often they were asked."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses
        self.calls = 0

    async def ask(self, peer: str) -> PeerTransports:
        self.calls += 1
        return PeerTransports("h", 1, self.addresses)


async def chosen(ways: OrderedWays, *failed: str) -> str:
    name, _ = await ways.open("d:1", attempt=len(failed), failed=frozenset(failed), timeout_s=1.0)
    return name


async def test_first_way_that_both_ends_have_and_that_has_not_failed() -> None:
    directory = Directory(tcp="d:3", grpc="d:1")
    shm, tcp, grpc = roads = [Road("shm"), Road("tcp"), Road("grpc")]
    ways = OrderedWays(roads, directory.ask)
    assert [await chosen(ways), await chosen(ways, "tcp"), await chosen(ways, "tcp", "grpc")] == ["tcp", "grpc", "grpc"]
    assert (shm.asked, tcp.asked, grpc.asked) == ([], ["d:3"], ["d:1", "d:1"])
    assert directory.calls == 1
    ways.failed("d:1", "tcp")
    await chosen(ways)
    assert directory.calls == 2  # it may be another process by now


async def test_way_that_does_not_open_is_passed_over() -> None:
    ways = OrderedWays([Road("tcp", is_blocked=True), Road("grpc")], Directory(tcp="d:3", grpc="d:1").ask)
    assert await chosen(ways) == "grpc"


async def test_no_way_at_all_is_a_transfer_error() -> None:
    for roads in ([Road("tcp", is_blocked=True), Road("grpc", is_blocked=True)], [Road("shm")]):
        with pytest.raises(TransferAborted, match="no way to d:1"):
            await chosen(OrderedWays(roads, Directory(tcp="d:3", grpc="d:1").ask))


async def test_nobody_is_asked_when_there_is_only_grpc() -> None:
    directory, road = Directory(), Road("grpc")
    assert await chosen(OrderedWays([road], directory.ask)) == "grpc"
    assert (directory.calls, road.asked) == (0, ["d:1"])


def test_transport_that_is_not_known_is_refused() -> None:
    pool = StagingPool(1)
    with pytest.raises(ConfigError, match="pigeon"):
        make_transports(("grpc", "pigeon"), TransportContext("w", 1, "", pool))
    pool.close()


def test_answer_of_a_peer_round_trips_and_nonsense_is_refused() -> None:
    reply: dict[str, object] = {"host": host_identity(), "epoch": 3, "addresses": {"grpc": "d:1"}}
    assert PeerTransports.parse(reply) == PeerTransports(host_identity(), 3, {"grpc": "d:1"})
    for spoiled in ({}, reply | {"epoch": "3"}, reply | {"addresses": []}):
        with pytest.raises((KeyError, TypeError)):
            PeerTransports.parse(spoiled)
