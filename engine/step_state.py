"""A worker's load, kept from the figures an engine gives after each step.

Owns the WorkerState of one engine and who is told when it changes. Must not know where the figures come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from core.types import Quarantined, WorkerState


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step computed, by the engine core's own clock and count."""

    seconds: float
    prompt_tokens: int  # computed, also of prompts whose rest is still to come
    seqs: int  # that got a token


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What an engine says after one step."""

    num_running: int
    num_waiting: int  # those that wait for KV included
    kv_usage: float  # part of the usable blocks held by live requests
    made_tokens: bool  # the step made a token for at least one request
    report: StepReport | None = None  # None: it computed nothing, or the engine cannot tell


class StepState:
    """The latest state of one engine; every call is made from the event loop."""

    def __init__(self) -> None:
        self._state = WorkerState()
        self._callbacks: list[Callable[[], None]] = []  # all and only those given to on_step, in order
        self.num_steps = 0  # that were observed, those without effect included
        self._last_step_s: float | None = None  # clock at the end of the latest step of a busy engine

    def set_blocks(self, total: int) -> None:
        """Take the number of usable KV blocks, once known."""
        self._state = replace(self._state, kv_blocks_total=total)

    def set_quarantined(self, quarantined: tuple[Quarantined, ...]) -> None:
        """Take whose KV the engine does not take, and tell the callbacks."""
        self._state = replace(self._state, quarantined=quarantined)
        for callback in self._callbacks:
            callback()

    def get(self) -> WorkerState:
        """Return the state at the end of the latest step."""
        return self._state

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each step that changed the state or computed something."""
        self._callbacks.append(callback)

    def set_stalled(self, is_stalled: bool) -> None:
        """Take whether the engine stands still, and tell the callbacks if that is new."""
        if is_stalled is self._state.stalled:
            return
        self._state = replace(self._state, stalled=is_stalled)
        for callback in self._callbacks:
            callback()

    def observe(self, figures: StepFigures, now_s: float) -> None:
        """Take the figures of one step that ended at `now_s`, and tell the callbacks if they matter.

        Engines that wait for KV step a thousand times a second without effect; those steps tell nobody. The time of a
        step that the engine does not report is that since the step before, and what it computed is then unknown: 0.
        """
        self.num_steps += 1
        old = self._state
        latest = StepReport(old.step_s, old.step_prompt_tokens, old.step_seqs)
        if figures.report is not None:
            latest = figures.report
        elif figures.made_tokens and self._last_step_s is not None:
            latest = StepReport(now_s - self._last_step_s, 0, 0)
        self._last_step_s = now_s if figures.num_running else None
        self._state = WorkerState(
            num_running=figures.num_running,
            num_waiting=figures.num_waiting,
            kv_blocks_used=round(figures.kv_usage * old.kv_blocks_total),
            kv_blocks_total=old.kv_blocks_total,
            step_s=latest.seconds,
            step_prompt_tokens=latest.prompt_tokens,
            step_seqs=latest.seqs,
            quarantined=old.quarantined,
            stalled=old.stalled,
        )
        if figures.report is not None or figures.made_tokens or self._state != old:
            for callback in self._callbacks:
                callback()
