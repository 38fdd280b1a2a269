"""When an engine's steps begin and end, and what they compute, told by the scheduler of its engine core.

Owns the definition of a step's time and the reading of scheduled tokens into core.latency's Step. Must not know vLLM's
classes, nor who wants to know.

A step lasts from the end of the step before it, if that left work to do, else from its own scheduling, to the moment
its tokens are known. So the times of the steps of a busy engine add up to the wall clock, whether the engine schedules
ahead (on GPUs) or not. With pipeline stages several steps are under way at once: there each counts from its own
scheduling.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.latency.step import Step, attention_pairs


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One step; times are of the machine's monotonic clock."""

    began_s: float
    ended_s: float
    step: Step

    @property
    def seconds(self) -> float:
        """How long the step took."""
        return self.ended_s - self.began_s


class StepClock:
    """Turns the scheduler's beginnings and ends into TracedSteps."""

    def __init__(self, *, overlapping: bool) -> None:
        self._overlapping = overlapping  # several steps are under way at once
        self._open: dict[int, tuple[float, Step]] = {}  # all and only steps scheduled and not computed, by identity
        self._busy_since_s: float | None = None  # end of the latest step, if it left work to do

    def scheduled(self, key: int, step: Step, now_s: float) -> None:
        """Take a step that was scheduled from `now_s` on; one that computes nothing is no step."""
        if step.prefill_tokens or step.decode_seqs:
            self._open[key] = (now_s, step)
        elif not self._open:
            self._busy_since_s = None

    def computed(self, key: int, now_s: float, *, work_left: bool) -> TracedStep | None:
        """Take the end of the step `key`, and return it; None if it computed nothing."""
        if key not in self._open:
            return None
        began_s, step = self._open.pop(key)
        if self._busy_since_s is not None and not self._overlapping:
            began_s = self._busy_since_s
        self._busy_since_s = now_s if work_left else None
        return TracedStep(began_s, now_s, step)


def step_of(pieces: Iterable[tuple[int, int]]) -> Step:
    """Add up the pieces of a step: for each sequence, tokens computed in it and tokens before them.

    One token behind others is decoding, also the last token of a prompt whose KV came from elsewhere.
    """
    tokens = prompts = decoding = context = 0
    pairs = 0.0
    for new, before in pieces:
        if new == 1 and before > 0:
            decoding += 1
            context += before + 1
        else:
            tokens += new
            prompts += 1
            pairs += attention_pairs(new, before)
    return Step(tokens, prompts, pairs, decoding, context)
