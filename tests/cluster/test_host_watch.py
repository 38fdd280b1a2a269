"""Hosts are asked again and again, and given up only when they say nothing for the whole time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.host_events import HostFacts
from cluster.host_watch import BEATS_IN_SILENCE, HostWatch
from cluster.members import Member, Members
from core.control.reconcile import Phase
from core.types import Role
from tests.support.local_actors import LocalActor

LIMIT_S = 10.0


class Host:
    """A host as the beat knows it."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def alive(self) -> bool:
        self.num_asked += 1
        return True


class Watched:
    """A watch of some members, and who was given up."""

    def __init__(self, *names: str) -> None:
        self.members = Members(publish=lambda _: None)
        self.lost: list[tuple[str, str]] = []
        self.watch = HostWatch(self.members, self._lose)
        for name in names:
            member = Member(name, Role.DECODE, Phase.READY, "")
            member.host, member.host_name = LocalActor(Host()), f"{name}.1"
            member.facts = HostFacts("h", 1, (0,), (), 0)
            self.members.table[name] = member

    def _lose(self, member: Member, why: str) -> None:
        self.lost.append((member.worker_id, why))
        member.host = member.facts = None

    def host(self, name: str) -> LocalActor:
        found = self.members.table[name].host
        assert isinstance(found, LocalActor)
        return found

    async def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.watch.tick(LIMIT_S)
            for _ in range(4):  # what is asked is answered in a few passes of the loop
                await asyncio.sleep(0)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched("decode-0", "decode-1")
    yield made
    made.members.table.clear()
    await made.tick()
    assert made.watch._beats == {}


async def test_hosts_that_answer_are_asked_at_each_beat(watched: Watched) -> None:
    await watched.tick(20)
    assert watched.lost == []
    assert [watched.host(name).made.num_asked for name in ("decode-0", "decode-1")] == [20, 20]  # type: ignore[attr-defined]


async def test_a_silent_host_is_lost_once_and_no_other(watched: Watched) -> None:
    await watched.tick()
    watched.host("decode-1").fall_silent()
    await watched.tick(BEATS_IN_SILENCE)
    assert watched.lost == []
    await watched.tick(BEATS_IN_SILENCE)
    assert watched.lost == [("decode-1", "its host has been silent for 10 s")]


async def test_one_that_speaks_again_in_time_is_kept(watched: Watched) -> None:
    host = watched.host("decode-0")
    for _ in range(3):
        host.fall_silent()
        await watched.tick(BEATS_IN_SILENCE - 1)
        host.speak()
        await watched.tick(2)
    assert watched.lost == []


async def test_one_whose_answers_are_errors_is_given_up_unless_its_follower_did(watched: Watched) -> None:
    await watched.host("decode-0").kill()
    await watched.tick(BEATS_IN_SILENCE + 1)
    assert watched.lost == [("decode-0", "its host has been silent for 10 s")]


async def test_one_without_a_place_is_not_asked(watched: Watched) -> None:
    watched.members.table["decode-0"].facts = None
    watched.host("decode-0").fall_silent()
    await watched.tick(3 * BEATS_IN_SILENCE)
    assert watched.lost == []
