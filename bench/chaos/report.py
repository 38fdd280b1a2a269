"""The result of a chaos run as a table for people and as JSON.

Owns wording and shape only.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence

from bench.chaos.suite import Result
from bench.chaos.traffic import Verdict, count

_HEAD = ("fault", "rounds", "answers", "right", "refused", "error", "cut", "wrong", "hung", "back after", "verdict")
_COUNTED = (Verdict.RIGHT, Verdict.REFUSED, Verdict.ERROR, Verdict.CUT, Verdict.WRONG, Verdict.HUNG)


def markdown(results: Sequence[Result], heading: str) -> str:
    """Write a table, what failed below it."""
    lines = [heading, "", _row(_HEAD), _row(["---"] * len(_HEAD))]
    for result in results:
        answers = result.answers
        cells = [result.fault.name, str(len(result.rounds)), str(len(answers))]
        cells += [str(count(answers, verdict)) for verdict in _COUNTED]
        cells += [_recovery(result), _verdict(result)]
        lines.append(_row(cells))
    failed = [f"- {result.fault.name}: {failure}" for result in results for failure in result.failures()]
    skipped = [f"- {result.fault.name}: {result.skipped}" for result in results if result.skipped]
    return "\n".join([*lines, "", *failed, *skipped]).rstrip() + "\n"


def as_json(results: Sequence[Result]) -> dict[str, object]:
    """Say the same as values."""
    return {
        "ok": passed(results),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "faults": [
            {
                "name": result.fault.name,
                "what": result.fault.what,
                "rounds": len(result.rounds),
                "answers": {str(verdict): count(result.answers, verdict) for verdict in Verdict},
                "longest_gap_s": max((a.longest_gap_s for a in result.answers), default=0.0),
                "recovery_s": [one.recovery_s for one in result.rounds],
                "failures": result.failures(),
                "skipped": result.skipped,
            }
            for result in results
        ],
    }


def passed(results: Sequence[Result]) -> bool:
    """Whether nothing failed and something was made."""
    return any(result.rounds for result in results) and not any(result.failures() for result in results)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _recovery(result: Result) -> str:
    times_s = [one.recovery_s for one in result.rounds if one.recovery_s is not None]
    return f"{statistics.median(times_s):.1f} s, {max(times_s):.1f} at most" if times_s else "-"


def _verdict(result: Result) -> str:
    if result.failures():
        return "**failed**"
    return "passed" if result.rounds else "not made"
