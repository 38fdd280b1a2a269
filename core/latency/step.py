"""The time of one engine step from what it computes: the form that every source of profiles is brought to.

Owns the form and its evaluation. Must not know where the numbers come from (core.latency.profile) or who schedules.

A step that computes `n` prompt tokens and one token for each of `B` decoding sequences takes

    B == 0:  D(n) + G(n) * pairs + seq_s * prefill_seqs
    n == 0:  F(B) + C(B) * context_tokens
    both:    F(B) + M(B) * context_tokens + D(n + B) - D(B) + G(n) * pairs + seq_s * prefill_seqs

D holds the floor of reading the weights, the matrix products and the all-reduces of n tokens; G the prompts'
attention; F everything of a decode step that its context does not change; C the read of the KV cache; M that read
beside prompts, where one attention kernel serves both and is slower at it: 1.3 to 1.9 times C on an RTX PRO 6000 (the
attention table of LLMServingSim's Llama-3.1-8B profile). The linear form of DistServe (simdistserve/estimators) is the
case of straight tables; a roofline is the case of a flat, then rising D.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A piecewise linear function through its knots: flat before the first, straight on after the last.

    After the last it never falls: a rate that falls towards its limit would be negative further on.
    """

    at: tuple[float, ...]  # strictly rising, at least one
    value: tuple[float, ...]  # one for each knot

    def __post_init__(self) -> None:
        if not self.at or len(self.at) != len(self.value):
            raise ValueError("a table needs as many values as knots, and at least one")
        if any(b <= a for a, b in zip(self.at, self.at[1:], strict=False)):
            raise ValueError("the knots of a table must rise")

    @classmethod
    def constant(cls, value: float) -> Table:
        """Make the function that is `value` everywhere."""
        return cls((0.0,), (value,))

    @classmethod
    def line(cls, intercept: float, slope: float) -> Table:
        """Make intercept + slope * x for x >= 0 and a slope that does not fall."""
        return cls((0.0, 1.0), (intercept, intercept + slope))

    def __call__(self, x: float) -> float:
        """Evaluate at `x`."""
        at, value = self.at, self.value
        if x <= at[0] or len(at) == 1:
            return value[0]
        if x >= at[-1]:
            return value[-1] + self.slope_beyond * (x - at[-1])
        i = bisect_right(at, x)
        share = (x - at[i - 1]) / (at[i] - at[i - 1])
        return value[i - 1] + share * (value[i] - value[i - 1])

    @property
    def slope_beyond(self) -> float:
        """Tell the slope after the last knot, which is that before it but never less than 0."""
        at, value = self.at, self.value
        return max(0.0, (value[-1] - value[-2]) / (at[-1] - at[-2])) if len(at) > 1 else 0.0

    def scaled(self, factor: float) -> Table:
        """Multiply every value."""
        return Table(self.at, tuple(v * factor for v in self.value))


@dataclass(frozen=True, slots=True)
class Step:
    """What one engine step computes."""

    prefill_tokens: int = 0  # prompt tokens computed, cached ones not among them
    prefill_seqs: int = 0
    attention_pairs: float = 0.0  # see attention_pairs(), summed over the prompts
    decode_seqs: int = 0
    context_tokens: int = 0  # KV tokens that the decoding sequences read


def attention_pairs(tokens: float, cached_tokens: float = 0.0) -> float:
    """Count the query-key pairs of `tokens` new prompt tokens behind `cached_tokens`: n * (cached + n / 2)."""
    return tokens * (cached_tokens + tokens / 2.0)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step on one worker; the tables are those of the module's docstring."""

    dense: Table  # D: tokens -> s
    pair: Table  # G: prompt tokens of the step -> s per attention pair
    decode_fixed: Table  # F: sequences -> s
    decode_context: Table  # C: sequences -> s per context token
    prefill_seq_s: float = 0.0  # for each prompt in the step
    mixed_context: Table | None = None  # M: sequences -> s per context token in a mixed step; None: as C

    def seconds(self, step: Step) -> float:
        """Return the time of `step`; 0 when it computes nothing."""
        time_s = 0.0
        if step.decode_seqs:
            batch = step.decode_seqs
            read = self.mixed_context if step.prefill_tokens and self.mixed_context else self.decode_context
            time_s = self.decode_fixed(batch) + read(batch) * step.context_tokens
        if step.prefill_tokens:
            tokens, batch = step.prefill_tokens, step.decode_seqs
            time_s += self.dense(tokens + batch) - (self.dense(batch) if batch else 0.0)
            time_s += self.pair(tokens) * step.attention_pairs + self.prefill_seq_s * step.prefill_seqs
        return time_s

    def prefill_s(self, tokens: int, cached_tokens: int = 0) -> float:
        """Return the time of a step that computes one prompt's `tokens` behind `cached_tokens` and nothing else."""
        return self.seconds(Step(tokens, 1, attention_pairs(tokens, cached_tokens)))

    def decode_s(self, seqs: int, context_tokens: int) -> float:
        """Return the time of a decode step of `seqs` sequences that read `context_tokens` in all."""
        return self.seconds(Step(decode_seqs=seqs, context_tokens=context_tokens))

    def scaled(self, *, prefill: float = 1.0, decode: float = 1.0) -> StepCost:
        """Multiply what prompts cost and what decode steps cost; for errors of the model and for slower machines."""
        return StepCost(
            dense=self.dense.scaled(prefill),
            pair=self.pair.scaled(prefill),
            decode_fixed=self.decode_fixed.scaled(decode),
            decode_context=self.decode_context.scaled(decode),
            prefill_seq_s=self.prefill_seq_s * prefill,
            mixed_context=self.mixed_context.scaled(decode) if self.mixed_context else None,
        )
