"""Whether an engine core stands still: a verdict on what is seen of it at equal intervals.

Owns the rule. Pure; must not know how an engine core is looked at.

An engine that has requests ends a step soon, or is busy with a long one. It stands still when none of this is seen for
a while: the end of a step, an answer to a question that the core answers between steps, time used on a processor by any
of its processes, or one of them waiting for a processor or a disk. A process that was stopped, or waits for what never
comes, shows none of them; a long step on a slow or crowded machine shows one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of an engine core at one moment."""

    num_steps: int  # that have ended
    num_answers: int  # to questions
    cpu_ticks: int  # that its processes have used, all together
    is_runnable: bool  # one of its processes runs, or waits for a processor or a disk
    has_work: bool  # requests wait for it


@dataclass(frozen=True, slots=True)
class Verdict:
    """For how many looks in a row nothing was seen, and for how many no step ended; 0: it goes on."""

    num_still: int = 0
    num_stepless: int = 0


class Standstill:
    """Judges one engine core; one look after another."""

    def __init__(self) -> None:
        self._last: Sight | None = None
        self._verdict = Verdict()

    def look(self, sight: Sight) -> Verdict:
        """Take the next look. Looks and not seconds are counted: a stall of the one who looks is no stall of the core.

        Once it stands still, that there is no work left changes nothing: what ran is given up on then.
        """
        last, self._last = self._last, sight
        if last is None:
            return self._verdict
        has_stepped = sight.num_steps != last.num_steps
        has_answered = sight.num_answers != last.num_answers
        moves = has_stepped or has_answered or sight.is_runnable or sight.cpu_ticks != last.cpu_ticks
        had = self._verdict
        is_still = not moves and (sight.has_work or had.num_still > 0)
        is_stepless = not has_stepped and (sight.has_work or is_still)
        self._verdict = Verdict(had.num_still + 1 if is_still else 0, had.num_stepless + 1 if is_stepless else 0)
        return self._verdict
