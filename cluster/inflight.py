"""What a router has sent to one worker and has not got back, in the terms that policies look at.

Owns the sums. Must not know calls, frames or sockets.
"""

from __future__ import annotations

from collections import Counter
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
    tpot_targets_s: Counter[float] = field(default_factory=Counter)  # of the legs that make output here, if promised

    def add(self, leg: Leg, prompt_tokens: int, now_s: float) -> None:
        """Count a leg that was submitted."""
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

    @property
    def tightest_tpot_s(self) -> float | None:
        """Tell the least TPOT target of the legs that make output here; None when none has one."""
        return min(self.tpot_targets_s, default=None)

    def promise(self, tpot_s: float) -> None:
        """Note the TPOT target of a leg that makes output here; best effort has none to be kept."""
        self.tpot_targets_s[tpot_s] += 1

    def promise_over(self, tpot_s: float) -> None:
        """Take away a target that `promise` noted, for its leg has ended."""
        self.tpot_targets_s[tpot_s] -= 1
        if not self.tpot_targets_s[tpot_s]:
            del self.tpot_targets_s[tpot_s]
