"""How a worker's steps compare with what was predicted of them, as they are observed.

Owns the ratios and what is made of them: the median of the latest is the factor, the middle 90 % of them its spread, so
that neither a stall nor a burst of them moves the factor. A stateful accountant of whoever drives a policy; must not
know policies.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final

from core.latency.step import Step, StepCost
from core.types import Role, WorkerSpeed, WorkerState

_WINDOW: Final = 64  # latest ratios of a kind; a second or two of decode steps
_LEAST: Final = 8  # before which nothing is said
_MOST_FACTOR: Final = 10.0  # beyond it, or below its inverse, something else is wrong than the speed
_NOTICED: Final = 0.01  # a factor is told anew when it moved by so much of itself, a spread by so much absolutely


class _Ratios:
    """The latest logarithms of observed over predicted time."""

    __slots__ = ("_latest", "_ordered")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._ordered: list[float] = []  # the same, ascending

    def add(self, log_ratio: float) -> None:
        if len(self._latest) == _WINDOW:
            del self._ordered[bisect_left(self._ordered, self._latest.popleft())]
        self._latest.append(log_ratio)
        insort(self._ordered, log_ratio)

    def factor_and_spread(self, before: tuple[float, float]) -> tuple[float, float]:
        """Take the median and half the width of the middle 90 %, as a share; `before` when hardly anything changed."""
        count = len(self._ordered)
        if count < _LEAST:
            return before
        factor = min(max(math.exp(self._ordered[count // 2]), 1.0 / _MOST_FACTOR), _MOST_FACTOR)
        low, high = self._ordered[count // 20], self._ordered[count - 1 - count // 20]
        spread = min(math.sinh((high - low) / 2.0), _MOST_FACTOR)
        is_same = abs(factor - before[0]) <= _NOTICED * before[0] and abs(spread - before[1]) <= _NOTICED
        return before if is_same else (factor, spread)


class SpeedCorrection:
    """Compares one worker's steps with their cost."""

    def __init__(self, cost: StepCost, role: Role) -> None:
        """Take the cost that predictions are made with."""
        self._cost = cost
        self._is_prefill = role is Role.PREFILL
        self._prompts, self._decodes = _Ratios(), _Ratios()
        self._speed = WorkerSpeed()

    @property
    def speed(self) -> WorkerSpeed:
        """Tell how the worker compares; the same object until that changed noticeably."""
        return self._speed

    def observe_step(self, state: WorkerState, block_size: int) -> None:
        """Take in the latest step of a worker, as its frame tells; one that did both, prompts and decode, says neither.

        A prefill worker's sequences are those whose prompts ended in the step. How many prompts shared its tokens the
        frame does not tell: they count as one.
        """
        tokens = state.step_prompt_tokens
        if not tokens:
            self.observe_decode(state.step_seqs, state.kv_blocks_used * block_size, state.step_s)
        elif self._is_prefill:
            self.observe_prompt(tokens, tokens * tokens / 2.0, state.step_s)

    def observe_decode(self, seqs: int, context_tokens: int, step_s: float) -> None:
        """Take in a step that made a token for each of `seqs` sequences and nothing else."""
        if seqs > 0 and _add(self._decodes, step_s, self._cost.decode_s(seqs, context_tokens)):
            self._update()

    def observe_prompt(self, tokens: int, pairs: float, seconds: float) -> None:
        """Take in a step that computed `tokens` of prompts and nothing else."""
        if tokens > 0 and _add(self._prompts, seconds, self._cost.seconds(Step(tokens, 1, pairs))):
            self._update()

    def _update(self) -> None:
        speed = self._speed
        prompts = self._prompts.factor_and_spread((speed.prefill_factor, speed.prefill_spread))
        decodes = self._decodes.factor_and_spread((speed.decode_factor, speed.decode_spread))
        if (prompts[0], decodes[0], prompts[1], decodes[1]) != (
            speed.prefill_factor,
            speed.decode_factor,
            speed.prefill_spread,
            speed.decode_spread,
        ):
            self._speed = WorkerSpeed(prompts[0], decodes[0], prompts[1], decodes[1])


def _add(ratios: _Ratios, observed_s: float, predicted_s: float) -> bool:
    """Note a ratio if there is one."""
    if observed_s <= 0.0 or predicted_s <= 0.0:
        return False
    ratios.add(math.log(observed_s / predicted_s))
    return True
