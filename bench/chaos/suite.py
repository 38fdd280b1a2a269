"""One fault after the other, each under traffic: broken, waited for, judged.

Owns the order of a round, what counts as recovered, and the verdict. Must not know how a fault is made.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from bench.chaos.faults import CannotBreak, Fault, Scene
from bench.chaos.traffic import CLEAN, Answer, Verdict, count
from cluster.router_probe import ask_lives

BEFORE_S: Final = 2.0  # traffic runs this long before the fault
SETTLE_S: Final = 1.5  # from the fault until the router must know of it
AFTER_S: Final = 2.0  # of traffic after recovery
LEDGER_S: Final = 45.0  # beyond the longest lease (kv.lease_s is 30 s) every hand-over must have ended
MIN_RIGHT: Final = 0.99
_POLL_S: Final = 0.2

Lives: TypeAlias = Mapping[str, tuple[str, int]]  # role and epoch of each worker that the router has, by id


@dataclass(frozen=True, slots=True)
class Round:
    """What one occurrence of a fault did."""

    fault: str
    done: str  # what exactly was broken
    answers: tuple[Answer, ...]  # from the fault until after recovery
    recovery_s: float | None  # from the kill, or the end of a passing fault, until all were back; None: not in time
    ledger: tuple[str, ...]  # what is amiss with hand-overs afterwards
    settled_s: float = 0.0  # after the traffic, until no hand-over was held, or time was up

    def told(self) -> str:
        """Sum it up in a line."""
        back = "never back" if self.recovery_s is None else f"back after {self.recovery_s:.1f} s"
        verdicts = Counter(answer.verdict for answer in self.answers)
        answers = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common()) or "none"
        error = next((f" ({a.detail})" for a in self.answers if a.verdict is Verdict.ERROR), "")
        return f"{self.done}, {back}; answers: {answers}{error}; hand-overs settled after {self.settled_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one fault."""

    fault: Fault
    rounds: tuple[Round, ...]
    skipped: str = ""  # why it could not be made

    @property
    def answers(self) -> list[Answer]:
        """Answers of all rounds."""
        return [answer for found in self.rounds for answer in found.answers]

    @property
    def share_right(self) -> float:
        """Share of the answers that are right, of clients that did not leave."""
        judged = [answer for answer in self.answers if answer.verdict is not Verdict.LEFT]
        return count(judged, Verdict.RIGHT) / len(judged) if judged else 1.0

    def failures(self) -> list[str]:
        """Say what was not as it must be; empty: passed."""
        found = []
        for verdict in (Verdict.WRONG, Verdict.HUNG, Verdict.CUT):
            number = count(self.answers, verdict)
            if number and not (verdict is Verdict.CUT and self.fault.cuts_clients):
                first = next(a.detail for a in self.answers if a.verdict is verdict)
                found.append(f"{number} {verdict} ({first})")
        if not self.fault.cuts_clients and self.share_right < MIN_RIGHT:
            reasons = {a.detail for a in self.answers if a.verdict in CLEAN and a.detail}
            found.append(f"{self.share_right:.1%} right, {MIN_RIGHT:.0%} wanted ({'; '.join(sorted(reasons)[:2])})")
        late = sum(one.recovery_s is None for one in self.rounds)
        if late:
            found.append(f"not recovered in {late} of {len(self.rounds)} rounds")
        found += [f"ledger: {problem}" for one in self.rounds for problem in one.ledger][:3]
        return found


class Suite:
    """Runs faults on one target."""

    def __init__(self, scene: Scene, *, recovery_s: float, say: Callable[[str], None]) -> None:
        """`recovery_s` bounds the wait for what was broken, start of a worker included."""
        self._scene = scene
        self._recovery_s = recovery_s
        self._say = say

    async def run(self, faults: Sequence[Fault], rounds: int) -> list[Result]:
        """Make each fault `rounds` times; needs all workers ready at the beginning."""
        results = []
        for fault in faults:
            results.append(await self._run_fault(fault, rounds))
            failures = results[-1].failures()
            self._say(f"{fault.name}: {'; '.join(failures) or results[-1].skipped or 'passed'}")
        return results

    async def _run_fault(self, fault: Fault, rounds: int) -> Result:
        done: list[Round] = []
        for number in range(rounds):
            try:
                done.append(await self._round(fault))
            except CannotBreak as exc:
                return Result(fault, tuple(done), f"not made: {exc}")
            self._say(f"{fault.name} {number + 1}/{rounds}: {done[-1].told()}")
            if done[-1].recovery_s is None:
                break  # what is broken already proves nothing more
        return Result(fault, tuple(done))

    async def _round(self, fault: Fault) -> Round:
        traffic = self._scene.traffic
        before = await asyncio.to_thread(ask_lives, self._scene.target.front)
        traffic.answers.clear()
        traffic.start()
        try:
            await asyncio.sleep(BEFORE_S + self._scene.chance.random())
            began_s = time.monotonic()
            broken = await fault.make(self._scene)
            broken_s = time.monotonic()
            back = await self._wait_recovered(before, broken.victims)
            recovery_s = time.monotonic() - broken_s if back else None
            await asyncio.sleep(AFTER_S)
        finally:
            await traffic.stop()
        answers = tuple(answer for answer in traffic.answers if answer.ended_s >= began_s)
        ended_s = time.monotonic()
        ledger = await asyncio.to_thread(self._scene.target.wait_balanced, LEDGER_S)
        return Round(fault.name, broken.what, answers, recovery_s, ledger, time.monotonic() - ended_s)

    async def _wait_recovered(self, before: Lives, victims: Sequence[str]) -> bool:
        """Wait until there are as many workers of each role as before, and the victims live new lives."""
        deadline_s = time.monotonic() + self._recovery_s
        await asyncio.sleep(SETTLE_S)
        while time.monotonic() < deadline_s:
            await asyncio.sleep(_POLL_S)
            now = await asyncio.to_thread(ask_lives, self._scene.target.front)
            has_old = any(now.get(victim) == before.get(victim) for victim in victims)
            if not has_old and _by_role(now) == _by_role(before):
                return True
        return False


def _by_role(lives: Lives) -> Counter[str]:
    return Counter(role for role, _ in lives.values())
