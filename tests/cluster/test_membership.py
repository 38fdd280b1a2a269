"""Followers learn the newest membership, keep it while no controller answers, and recognise a new controller."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.membership import MembershipClient, MembershipServer, StaticMembership
from core.component_tls import ComponentTLS
from core.errors import ConfigError, StartFailed, Unauthorized, WorkerError
from core.types import ControlDecision, Membership, Role, WorkerRecord
from tests.support.certificates import Authority

HOST = "127.0.0.1"
WAIT_S = 20.0


def membership(version: int, *worker_ids: str) -> Membership:
    return Membership(version, tuple(WorkerRecord(w, Role.DECODE, 1, f"h:{version}", "n") for w in worker_ids))


@asynccontextmanager
async def controller(
    *published: Membership, port: int = 0, token: str = "", tls: ComponentTLS | None = None
) -> AsyncIterator[tuple[MembershipServer, int]]:
    server = MembershipServer(host=HOST, port=port, token=token, tls=tls)
    for item in published:
        server.publish(item)
    bound = await server.start()
    try:
        yield server, bound
    finally:
        await server.stop()
        await server.stop()


class Follower:
    """Collects what a client yields."""

    def __init__(self, port: int, token: str = "") -> None:
        self.seen: list[Membership] = []
        self._changed = asyncio.Event()
        self._client = MembershipClient(f"{HOST}:{port}", token)
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for item in self._client.watch():
            self.seen.append(item)
            self._changed.set()

    async def until(self, *, last: Membership) -> None:
        async with asyncio.timeout(WAIT_S):
            while not self.seen or self.seen[-1] != last:
                await self._changed.wait()
                self._changed.clear()

    async def until_told(self, decisions: tuple[ControlDecision, ...]) -> None:
        deadline_s = asyncio.get_running_loop().time() + WAIT_S
        while self._client.decisions != decisions:
            assert asyncio.get_running_loop().time() < deadline_s, self._client.decisions
            await asyncio.sleep(0.01)  # the client tells nobody of them

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_static_membership_is_told_once() -> None:
    assert [m async for m in StaticMembership(membership(3, "a")).watch()] == [membership(3, "a")]


async def test_late_follower_gets_the_newest_at_once() -> None:
    async with controller(membership(1, "a"), membership(2, "b")) as (server, port), Follower(port) as follower:
        await follower.until(last=membership(2, "b"))
        server.publish(membership(3, "b", "c"))
        await follower.until(last=membership(3, "b", "c"))
        async with Follower(port) as late:
            await late.until(last=membership(3, "b", "c"))
            assert late.seen == [membership(3, "b", "c")]
        assert follower.seen == [membership(2, "b"), membership(3, "b", "c")]


async def test_follower_of_a_controller_without_news_waits() -> None:
    async with controller() as (server, port), Follower(port) as follower:
        server.publish(membership(1))
        await follower.until(last=membership(1))


async def test_what_was_decided_is_told_beside_the_membership_and_is_no_news_of_it() -> None:
    earlier, later = ControlDecision(1e9, "decode 2 -> 3", "late"), ControlDecision(1e9 + 5, "3 -> 2", "idle", "done")
    async with controller(membership(1, "a")) as (server, port), Follower(port) as follower:
        await follower.until(last=membership(1, "a"))
        server.tell((earlier,))
        await follower.until_told((earlier,))
        server.tell((later, earlier))
        await follower.until_told((later, earlier))
        server.publish(membership(2, "b"))
        await follower.until(last=membership(2, "b"))
        assert follower.seen == [membership(1, "a"), membership(2, "b")]
        async with Follower(port) as late:
            await late.until_told((later, earlier))


async def test_burst_of_publications_ends_with_the_newest() -> None:
    async with controller(membership(1)) as (server, port), Follower(port) as follower:
        await follower.until(last=membership(1))
        for version in range(2, 500):
            server.publish(membership(version, "a"))
        await follower.until(last=membership(499, "a"))
        assert len(follower.seen) < 20


async def test_membership_is_kept_over_a_restart_with_the_same_version() -> None:
    async with Follower(await free_port()) as idle:
        assert idle.seen == []
    async with controller(membership(7, "a")) as (_, port):
        follower = Follower(port)
        await follower.until(last=membership(7, "a"))
    async with follower:
        assert not follower.task.done()
        async with controller(membership(7, "a"), port=port) as (server, _):
            server.publish(membership(8, "a"))
            await follower.until(last=membership(8, "a"))
        assert follower.seen == [membership(7, "a"), membership(8, "a")]


async def test_restarted_controller_may_count_anew() -> None:
    async with controller(membership(7, "a")) as (_, port):
        follower = Follower(port)
        await follower.until(last=membership(7, "a"))
    async with follower, controller(membership(1, "b"), port=port):
        await follower.until(last=membership(1, "b"))


@pytest.mark.parametrize("version", [4, 5])
async def test_controller_never_goes_back(version: int) -> None:
    server = MembershipServer(host=HOST)
    server.publish(membership(5))
    with pytest.raises(ValueError, match=f"version {version} does not follow 5"):
        server.publish(membership(version))


async def test_wrong_token_is_refused() -> None:
    async with controller(membership(1), token="secret") as (_, port):
        async with aclosing(MembershipClient(f"{HOST}:{port}", "wrong").watch()) as watch:  # type: ignore[type-var]
            with pytest.raises(Unauthorized):
                await anext(watch)
        async with Follower(port, "secret") as follower:
            await follower.until(last=membership(1))


async def first_of(port: int, tls: ComponentTLS | None) -> Membership:
    """Follow a controller for one membership, without trying again."""
    async with aclosing(MembershipClient(f"{HOST}:{port}", "secret", tls=tls)._watch_once()) as watch:
        async with asyncio.timeout(WAIT_S):
            return await anext(watch)


async def test_only_components_of_one_authority_follow_a_controller(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    tls, stranger = ours.component("node"), Authority(tmp_path, "other").component("stranger")
    faults = [
        (stranger, "not signed by security.ca of this end"),
        (replace(stranger, ca=tls.ca), "security.ca there must have signed security.cert here"),
        (replace(tls, name="west"), "does not carry security.name"),
        (None, "if it wants TLS: give both ends the same security section"),
    ]
    async with controller(membership(1), token="secret", tls=tls) as (_, port):
        for broken, words in faults:
            with pytest.raises(WorkerError, match=re.escape(words)):
                await first_of(port, broken)
        assert await first_of(port, ours.component("router")) == membership(1)
    async with controller(membership(1), token="secret") as (_, port):
        with pytest.raises(WorkerError, match="does not speak TLS"):
            await first_of(port, tls)


async def test_a_certificate_that_cannot_be_read_starts_nothing(tmp_path: Path) -> None:
    tls = replace(Authority(tmp_path).component("node"), key=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"security\.key: there is no file"):
        await MembershipServer(host=HOST, tls=tls).start()


async def test_taken_port_is_an_error() -> None:
    async with controller() as (_, port):
        with pytest.raises(StartFailed):
            await MembershipServer(host=HOST, port=port).start()


async def free_port() -> int:
    async with controller() as (_, port):
        return port
