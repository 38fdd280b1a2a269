"""A long run under traffic with a fault every few seconds: does anything grow, is anything left behind?

Owns when faults are made, what is sampled of the processes, and the verdict. Must not know how a fault is made.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.chaos.faults import CannotBreak, Fault, Scene
from bench.chaos.processes import Usage, controller_of, usage_of
from bench.chaos.suite import LEDGER_S, MIN_RIGHT
from bench.chaos.traffic import Verdict

SAMPLE_S: Final = 10.0
WARM_UP_SAMPLES: Final = 3  # of each process: what it allocates when it first serves is no growth
MIN_SAMPLES: Final = 8  # after them, for a verdict on a process
GROWTH_SHARE: Final = 0.10  # of what it had, that a process may grow
GROWTH_MB: Final = 16.0  # and beyond that
GROWTH_DESCRIPTORS: Final = 16
REASONS_TOLD: Final = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One process over its life."""

    name: str
    pid: int
    usages: tuple[Usage, ...]
    seen_s: float = 0.0  # from the first of them to the last

    @property
    def is_judged(self) -> bool:
        """Whether it lived long enough."""
        return len(self.usages) >= WARM_UP_SAMPLES + MIN_SAMPLES

    def ends(self) -> tuple[Usage, Usage]:
        """Return the medians of its first and last quarter after the warm-up."""
        steady = self.usages[WARM_UP_SAMPLES:]
        count = max(1, len(steady) // 4)
        return _median(steady[:count]), _median(steady[-count:])

    def failures(self) -> list[str]:
        """Say what grew; empty: nothing, or it did not live long enough to tell."""
        if not self.is_judged:
            return []
        first, last = self.ends()
        found = []
        if last.rss_mb > first.rss_mb * (1 + GROWTH_SHARE) + GROWTH_MB:
            found.append(f"{self.name} ({self.pid}): memory grew from {first.rss_mb:.0f} to {last.rss_mb:.0f} MiB")
        if last.descriptors > first.descriptors + GROWTH_DESCRIPTORS:
            found.append(f"{self.name} ({self.pid}): {first.descriptors} descriptors became {last.descriptors}")
        return found


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What came of it."""

    seconds: float
    answers: Counter[Verdict]
    faults: Counter[str]  # made, by name
    series: tuple[Series, ...]
    ledger: tuple[str, ...]  # what is amiss with hand-overs at the end
    cut_clients: int  # connections that a fault may cut
    reasons: Mapping[str, int] = field(default_factory=dict)  # of answers that are not right, with how many had each

    def failures(self) -> list[str]:
        """Say what was not as it must be; empty: passed."""
        found = [failure for one in self.series for failure in one.failures()]
        found += [
            f"{self.answers[verdict]} {verdict}" for verdict in (Verdict.WRONG, Verdict.HUNG) if self.answers[verdict]
        ]
        if self.answers[Verdict.CUT] > self.cut_clients:
            found.append(f"{self.answers[Verdict.CUT]} cut, {self.cut_clients} by faults that cut")
        judged = sum(n for verdict, n in self.answers.items() if verdict not in (Verdict.LEFT, Verdict.CUT))
        if judged and self.answers[Verdict.RIGHT] / judged < MIN_RIGHT:
            found.append(f"{self.answers[Verdict.RIGHT] / judged:.1%} right, {MIN_RIGHT:.0%} wanted")
        return [*found, *(f"ledger: {problem}" for problem in self.ledger[:3])]


class Soak:
    """Runs once."""

    def __init__(self, scene: Scene, *, say: Callable[[str], None]) -> None:
        self._scene = scene
        self._say = say
        self._usages: dict[tuple[str, int], list[Usage]] = defaultdict(list)  # by name and process
        self._seen_s: dict[tuple[str, int], float] = {}  # when each was sampled first
        self._last_s: dict[tuple[str, int], float] = {}  # and last
        self._answers: Counter[Verdict] = Counter()
        self._reasons: Counter[str] = Counter()
        self._made: Counter[str] = Counter()
        self._cut_clients = 0

    async def run(self, faults: Sequence[Fault], *, seconds: float, every_s: float) -> SoakResult:
        """Keep traffic up for `seconds` and make one of `faults` every `every_s`, when all workers are ready."""
        began_s = time.monotonic()
        traffic = self._scene.traffic
        traffic.answers.clear()
        traffic.start()
        sampler = asyncio.create_task(self._sample_forever(), name="samples")
        try:
            num_workers = len(await asyncio.to_thread(self._workers))
            while (left_s := began_s + seconds - time.monotonic()) > 0:
                await asyncio.sleep(min(every_s, left_s))
                self._count_answers()
                if left_s > every_s:
                    await self._make(self._scene.chance.choice(faults), num_workers)
        finally:
            sampler.cancel()
            await traffic.stop()
        self._count_answers()
        ledger = await asyncio.to_thread(self._scene.target.wait_balanced, LEDGER_S)
        series = tuple(
            Series(*key, tuple(found), self._last_s[key] - self._seen_s[key])
            for key, found in sorted(self._usages.items())
        )
        took_s = time.monotonic() - began_s
        return SoakResult(took_s, self._answers, self._made, series, ledger, self._cut_clients, self._reasons)

    async def _make(self, fault: Fault, num_workers: int) -> None:
        if len(await asyncio.to_thread(self._workers)) < num_workers:
            self._say(f"no fault: not all of {num_workers} workers are back")
            return
        try:
            broken = await fault.make(self._scene)
        except CannotBreak as exc:
            self._say(f"{fault.name} not made: {exc}")
            return
        self._made[fault.name] += 1
        if fault.cuts_clients:
            self._cut_clients += self._scene.traffic.num_clients
        self._say(broken.what)

    def _workers(self) -> list[str]:
        return [m.name for m in self._scene.target.members() if m.role is not None and m.is_ready]

    def _count_answers(self) -> None:
        answers = self._scene.traffic.answers
        self._answers.update(answer.verdict for answer in answers)
        self._reasons.update(f"{answer.verdict}: {answer.detail}" for answer in answers if answer.detail)
        answers.clear()

    async def _sample_forever(self) -> None:
        while True:
            await asyncio.to_thread(self._sample)
            await asyncio.sleep(SAMPLE_S)

    def _sample(self) -> None:
        members = [member for member in self._scene.target.members() if member.is_ready]
        pids = {member.name: member.pid for member in members}
        worker = next((member for member in members if member.role is not None), None)
        if worker is not None and (controller := controller_of(worker.pid)):
            pids["controller"] = controller
        for name, pid in pids.items():
            if (usage := usage_of(pid)) is not None:
                self._usages[name, pid].append(usage)
                self._last_s[name, pid] = time.monotonic()
                self._seen_s.setdefault((name, pid), self._last_s[name, pid])


def soak_report(result: SoakResult) -> str:
    """Write the result as Markdown."""
    answers = ", ".join(f"{count} {verdict}" for verdict, count in sorted(result.answers.items()))
    made = ", ".join(f"{name} {count}" for name, count in sorted(result.faults.items()))
    lines = [
        f"{result.seconds / 60:.1f} minutes, {sum(result.faults.values())} faults ({made}); answers: {answers}.",
        "",
        "| process | seen for | memory, first and last quarter | descriptors |",
        "|---|---|---|---|",
    ]
    for one in result.series:
        if one.is_judged:
            first, last = one.ends()
            memory = f"{first.rss_mb:.0f}, {last.rss_mb:.0f} MiB"
            lines.append(f"| {one.name} | {one.seen_s:.0f} s | {memory} | {first.descriptors}, {last.descriptors} |")
    lines += ["", *(f"- {failure}" for failure in result.failures())]
    most = sorted(result.reasons.items(), key=lambda reason: -reason[1])[:REASONS_TOLD]
    lines += [f"- {number} times: {reason}" for reason, number in most]
    return "\n".join(lines).rstrip() + "\n"


def _median(usages: Sequence[Usage]) -> Usage:
    return Usage(
        statistics.median(usage.rss_mb for usage in usages), round(statistics.median(u.descriptors for u in usages))
    )
