"""The controller's heart-beat to the hosts of its workers, which finds machines that fall silent.

A machine that loses power or its network closes no connection, and Ray takes half a minute to give it up. Owns the
beat and its bound. Must not act on a member: `lost` tells whoever does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cluster import ray_actors
from cluster.members import Member, Members

BEATS_IN_SILENCE: Final = 5  # in the time after which a host is given up


@dataclass(slots=True)
class _Beat:
    """The latest question to one host."""

    answer: asyncio.Future[object]
    num_unanswered: int = 0  # ticks that it has waited, or was answered by nothing but an error


class HostWatch:
    """The beat; `run` it as a task."""

    def __init__(self, members: Members, lost: Callable[[Member, str], None]) -> None:
        self._members = members
        self._lost = lost
        self._beats: dict[str, _Beat] = {}  # all and only the hosts that were asked, by name

    async def run(self, silence_s: Callable[[], float]) -> None:
        """Ask every host that has a place, until cancelled; one that is silent for `silence_s()` is lost.

        Counts beats and not seconds, so that a stall of this process is not held against a host.
        """
        try:
            while True:
                limit_s = silence_s()
                await asyncio.sleep(limit_s / BEATS_IN_SILENCE)
                self.tick(limit_s)
        finally:
            for name in list(self._beats):
                self._forget(name)

    def tick(self, limit_s: float) -> None:
        """Look at the answers to the questions before, and ask again."""
        asked = {m.host_name: m for m in self._members if m.host is not None and m.facts is not None}
        for name in [name for name in self._beats if name not in asked]:
            self._forget(name)
        for name, member in asked.items():
            beat = self._beats.get(name)
            if beat is None:
                self._beats[name] = _Beat(_ask(member))
            elif not beat.answer.done() or beat.answer.exception() is not None:
                self._wait_on(name, member, limit_s)
            else:
                self._beats[name] = _Beat(_ask(member))

    def _wait_on(self, name: str, member: Member, limit_s: float) -> None:
        beat = self._beats[name]
        beat.num_unanswered += 1
        if beat.num_unanswered >= BEATS_IN_SILENCE:
            self._forget(name)
            self._lost(member, f"its host has been silent for {limit_s:g} s")
        elif beat.answer.done():
            beat.answer = _ask(member)

    def _forget(self, name: str) -> None:
        answer = self._beats.pop(name).answer
        if not answer.cancel() and not answer.cancelled():
            answer.exception()  # retrieved: whoever follows the host is told why


def _ask(member: Member) -> asyncio.Future[object]:
    assert member.host is not None
    return asyncio.ensure_future(_answer(member.host))


async def _answer(host: ray_actors.Handle) -> object:
    return await host.alive.remote()
