"""Whether a pair of workers answers as its decode worker alone does: the judgement of a self-test.

Owns prompts, tolerance and verdict. Pure. Must not know how answers are had.

KV that was handed over and KV that was computed here differ by rounding only: the same operations in another batch.
Measured with the test model in float32 on a CPU, two engines, twelve prompts: log-probabilities are equal to the last
digit, and 0.44 to 2.1 apart when zeros are handed over (tests/integration/test_pair_self_test.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NUM_PROMPTS: Final = 2
NUM_BLOCKS: Final = 3  # of a prompt; the last one is not full
NUM_TOKENS: Final = 4  # that are made of each
NUM_LOGPROBS: Final = 5
TOLERANCE: Final = 0.25  # of a log-probability; bfloat16 rounding through a deep model moves it by up to a tenth
_TOKEN_IDS: Final = range(100, 250)  # every vocabulary has them, and most of them for single bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What one way of serving a prompt made of it, greedily."""

    tokens: tuple[str, ...]
    logprobs: tuple[dict[str, float], ...]  # of each token, the likeliest by name


def prompts_of(block_size: int, max_model_len: int, seed: str) -> list[list[int]]:
    """Make the prompts of one test, as token ids."""
    length = min(NUM_BLOCKS * block_size - block_size // 2, max_model_len - NUM_TOKENS)
    rng = random.Random(seed)
    return [[rng.choice(_TOKEN_IDS) for _ in range(length)] for _ in range(NUM_PROMPTS)]


def disagreement(alone: Sequence[Answer], paired: Sequence[Answer]) -> str:
    """Say how a pair's answers differ from decode's own; "" when they agree within the tolerance."""
    for number, (own, other) in enumerate(zip(alone, paired, strict=True), 1):
        if reason := _difference(own, other):
            return f"prompt {number} of the self-test: {reason}"
    return ""


def _difference(own: Answer, other: Answer) -> str:
    if not own.tokens or not other.tokens:
        return "no token was made"
    for place, (expected, found) in enumerate(zip(own.tokens, other.tokens, strict=False)):
        distance = _distance(own.logprobs[place], other.logprobs[place])
        if distance > TOLERANCE:
            return (
                f"log-probabilities of token {place + 1} are {distance:.3g} apart, beyond the tolerance of {TOLERANCE}"
            )
        if expected != found:
            # Nearly equal log-probabilities: which of two is greater may be rounding, and what follows differs then.
            return "" if _is_tie(own.logprobs[place], expected, found) else _other_token(place, expected, found)
    return ""


def _other_token(place: int, expected: str, found: str) -> str:
    return f"token {place + 1} is {found!r} of the pair and {expected!r} of the decode worker alone"


def _distance(own: dict[str, float], other: dict[str, float]) -> float:
    """Compare what both name: the least likely of the listed may differ."""
    shared = own.keys() & other.keys()
    return max((abs(own[token] - other[token]) for token in shared), default=float("inf"))


def _is_tie(logprobs: dict[str, float], one: str, other: str) -> bool:
    return other in logprobs and abs(logprobs[one] - logprobs[other]) <= TOLERANCE
