"""What a router has sent to one worker and has not got back, in the terms that policies look at.

Owns the sums. Must not know calls, frames or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.latency.step import attention_pairs
from core.types import Leg


@dataclass(slots=True)
class InflightWork:
    """Sums over the legs that run on one worker; all zero when there are none."""

    prompts: int = 0  # legs whose prefill the worker still owes
    prompt_tokens: int = 0
    prompt_pairs: float = 0.0  # attention pairs, see core.latency.step
    context_tokens: int = 0  # prompts of the legs that make output here
    prompting_since_s: float | None = None  # when the oldest prompt owed came to its turn; None: none is owed
    tpot_targets: dict[float, int] = field(default_factory=dict)  # how many of those legs have which TPOT target

    @property
    def tightest_tpot_s(self) -> float | None:
        """The least of the targets; None: there is none."""
        return min(self.tpot_targets, default=None)

    def add(self, leg: Leg, prompt_tokens: int, now_s: float, *, tpot_s: float | None = None) -> None:
        """Count a leg that was submitted."""
        if tpot_s is not None:
            self.tpot_targets[tpot_s] = self.tpot_targets.get(tpot_s, 0) + 1
        if leg is not Leg.PREFILL:
            self.context_tokens += prompt_tokens
        if leg is Leg.DECODE or not prompt_tokens:
            return
        self.prompts += 1
        self.prompt_tokens += prompt_tokens
        self.prompt_pairs += attention_pairs(prompt_tokens)
        if self.prompting_since_s is None:
            self.prompting_since_s = now_s

    def prompt_done(self, prompt_tokens: int, now_s: float) -> None:
        """Take away a prompt that the worker no longer owes; the next one has its turn from here on."""
        self.prompts -= 1
        self.prompt_tokens -= prompt_tokens
        self.prompt_pairs -= attention_pairs(prompt_tokens)
        self.prompting_since_s = now_s if self.prompts else None

    def tpot_ended(self, tpot_s: float | None) -> None:
        """Take away the target of an output that has ended."""
        if tpot_s is None:
            return
        left = self.tpot_targets[tpot_s] - 1
        if left:
            self.tpot_targets[tpot_s] = left
        else:
            del self.tpot_targets[tpot_s]
