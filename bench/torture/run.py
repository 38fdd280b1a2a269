"""A torture run: some engines, hand-overs between them until enough were made, and the account of it all.

Owns the pace, who dies when, and the verdict.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.torture.faulty import Odds
from bench.torture.handover import BOUND_S, HandOver
from bench.torture.side import Side

ODDS: Final = Odds(
    lose=0.002, double=0.002, swap=0.004, corrupt=0.002, misplace=0.002, delay=0.02, cut=0.01, mute=0.003, freeze=0.0005
)
_IDLE_S: Final = 30.0  # until everything is given back: the longest lease and what goes with it
_RSS_MB: Final = 64.0  # resident memory may grow by so much between a tenth of the run and its end
_DESCRIPTORS: Final = 128  # links and connections that the pairs of engines may keep between hand-overs
_STEP_S: Final = 0.0005  # an engine's step takes longer


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do."""

    handovers: int
    at_once: int
    seed: int
    transport: str  # as kv.transport
    faults: float  # factor on ODDS
    deaths: int  # hand-overs from one death to the next


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it."""

    seconds: float
    counts: Counter[str]
    faults: Counter[str]
    by_transport: Counter[str]
    problems: tuple[str, ...]


def torture(plan: Plan, run_dir: Path, *, tell: Callable[[str], object]) -> Outcome:
    """Run; `tell` hears how it goes."""
    chance = random.Random(plan.seed)
    odds = ODDS.scaled(plan.faults)
    sides = [
        Side(name, run_dir, transport=plan.transport, odds=odds, seed=chance.randrange(1 << 30))
        for name in ("prefill-0", "prefill-1", "decode-0", "decode-1")
    ]
    counts: Counter[str] = Counter()
    began_s, early = time.monotonic(), _resources()
    try:
        active: list[HandOver] = []
        made = 0
        while active or made < plan.handovers:
            while len(active) < plan.at_once and made < plan.handovers:
                prefill, decode = chance.choice(sides[:2]), chance.choice(sides[2:])
                active.append(HandOver(made, prefill, decode, chance, counts))
                made += 1
                _happen(made, plan, chance, sides, counts)
                if made == plan.handovers // 10:
                    early = _resources()
                if made % 1000 == 0:
                    tell(f"{made:,} hand-overs in {time.monotonic() - began_s:.0f} s: {_words(counts)}")
            for side in sides:
                counts["REPORTED TWICE"] += side.poll()
            active = [handover for handover in active if handover.step()]
            time.sleep(_STEP_S)
        problems = list(_left_over(sides, counts, early))
        faults = sum((side.faults for side in sides), Counter[str]())
        by_transport = sum((side.sent for side in sides), Counter[str]())
        return Outcome(time.monotonic() - began_s, counts, faults, by_transport, tuple(problems))
    finally:
        for side in sides:
            side.close()


def _happen(made: int, plan: Plan, chance: random.Random, sides: list[Side], counts: Counter[str]) -> None:
    """Kill an engine now and then."""
    if plan.deaths and made % plan.deaths == 0:
        side = chance.choice(sides)
        _settle(side, counts)
        side.kill()
        counts["killed"] += 1


def _settle(side: Side, counts: Counter[str]) -> None:
    """Take over what a side counted before it dies."""
    counts["SPOILED"] += side.pool.spoiled
    counts["UNBALANCED"] += side.endpoint.ledger.imbalances
    side.count_sent()


def _left_over(sides: list[Side], counts: Counter[str], early: tuple[int, float]) -> Iterator[str]:
    """Yield what is wrong at the end."""
    deadline_s = time.monotonic() + _IDLE_S
    while not all(side.is_idle() for side in sides) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for side in sides:
        _settle(side, counts)
        ledger = side.endpoint.ledger
        if ledger.open_leases or side.endpoint.sender.staged_bytes:
            yield f"{side.name} holds {len(ledger.open_leases)} leases, {side.endpoint.sender.staged_bytes} bytes"
        if ledger.blocks().imbalance or ledger.bytes().imbalance:
            yield f"the ledger of {side.name} is off by {ledger.blocks().imbalance} blocks"
    for kind, meaning in _NEVER.items():
        if counts[kind]:
            yield f"{counts[kind]} {meaning}"
    descriptors, resident_mb = _resources()
    if descriptors > early[0] + _DESCRIPTORS:
        yield f"{descriptors} descriptors are open, {early[0]} early in the run"
    if resident_mb > early[1] + _RSS_MB:
        yield f"{resident_mb:.0f} MiB are resident, {early[1]:.0f} early in the run"


_NEVER: Final = {
    "WRONG": "blocks would have been served with wrong bytes",
    "SPOILED": "free blocks were written",
    "HUNG": f"hand-overs did not end within {BOUND_S:g} s",
    "REPORTED TWICE": "requests were reported twice",
    "UNBALANCED": "times a ledger did not balance",
}


def _resources() -> tuple[int, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()) if count)


def report(plan: Plan, outcome: Outcome) -> Iterator[str]:
    """Yield the account as Markdown."""
    yield (
        f"{plan.handovers:,} hand-overs, {plan.at_once} at once, kv.transport {plan.transport}; seed {plan.seed}, "
        f"faults x {plan.faults:g}: {outcome.seconds:.0f} s.\n"
    )
    yield f"- ended: {_words(outcome.counts)}"
    yield f"- faults of streams: {_words(outcome.faults)}"
    yield f"- landed by transport: {_words(outcome.by_transport)}"
    yield "- **" + ("; ".join(outcome.problems) or "no wrong byte, no hang, nothing held, ledgers balanced") + "**"
