"""The cost of steps learnt from the steps themselves, where no profile was measured.

Owns what is kept of the steps and the fit, three terms for prompts and three for decode steps:

    prompt step   d0 + d1 * tokens + g * attention pairs
    decode step   f0 + f1 * sequences + c * context tokens

which is core.latency.step with straight tables. Steps are kept by kind, as the median of the latest few of each
octave of their two sizes, and fitted anew by robust least squares with no negative term: a load that stays the same for
hours neither drives out what was seen of others nor lets a term drift that it cannot tell, as recursive least squares
with forgetting does. Must not know who runs the steps.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from core.latency.least_squares import robust_non_negative
from core.latency.step import StepCost, Table

LEAST_STEPS: Final = 16  # of a kind, before it is known
_KEPT: Final = 9  # latest steps of a kind and size
_MOST_SIZES: Final = 96  # the least recently seen goes

# Weight, beside a step's, of the wish that a term which is not the main one be nothing: it decides where steps are
# alike, as when one sequence decodes at a time, and moves a term that they tell by about a hundredth.
_DOUBT: Final = 0.1

_Size = tuple[int, int]


class _Steps:
    """Steps of one kind on one role's workers, by size."""

    def __init__(self) -> None:
        self._by_size: dict[_Size, deque[tuple[float, float, float]]] = {}  # least recently seen first
        self.seen = 0

    def add(self, count: int, product: float, seconds: float) -> None:
        size = (count.bit_length(), int(product).bit_length())
        rows = self._by_size.pop(size, None)
        if rows is None:
            rows = deque(maxlen=_KEPT)
        rows.append((float(count), product, seconds))
        self._by_size[size] = rows
        if len(self._by_size) > _MOST_SIZES:
            del self._by_size[next(iter(self._by_size))]
        self.seen += 1

    def fit(self, main: int) -> tuple[float, float, float] | None:
        """Fit intercept, slope in the count and slope in the product, by relative error; None: too few were seen.

        What steps of one size cannot tell apart is given to the term number `main`.
        """
        if self.seen < LEAST_STEPS:
            return None
        rows = [_middle(rows) for rows in self._by_size.values()]
        terms = np.array([(1.0, count, product) for count, product, _ in rows])
        seconds = np.array([row[2] for row in rows])
        shares = terms / seconds[:, None]
        doubts = np.diag(_DOUBT * np.median(shares, axis=0))[[term for term in range(3) if term != main]]
        target = np.concatenate([np.ones(len(rows)), np.zeros(len(doubts))])
        first, second, third = robust_non_negative(np.concatenate([shares, doubts]), target).tolist()
        return first, second, third


class OnlineCost:
    """Learns the cost of the steps of one role's workers."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._prompts, self._decodes = _Steps(), _Steps()

    def observe_prompt(self, tokens: int, pairs: float, seconds: float) -> None:
        """Take in a step, or steps, that computed `tokens` of prompts and nothing else."""
        if tokens > 0 and seconds > 0.0:
            self._prompts.add(tokens, pairs, seconds)

    def observe_decode(self, seqs: int, context_tokens: int, step_s: float) -> None:
        """Take in a step that made a token for each of `seqs` sequences and nothing else."""
        if seqs > 0 and step_s > 0.0:
            self._decodes.add(seqs, float(context_tokens), step_s)

    def prompt_terms(self) -> tuple[float, float, float] | None:
        """Fit (d0, d1, g); None until enough was seen."""
        return self._prompts.fit(main=1)  # the matrix products of its tokens

    def decode_terms(self) -> tuple[float, float, float] | None:
        """Fit (f0, f1, c); None until enough was seen."""
        return self._decodes.fit(main=0)  # the read of the weights


def cost_of(prompt: tuple[float, float, float], decode: tuple[float, float, float]) -> StepCost:
    """Bring fitted terms to the form of core.latency.step."""
    return StepCost(
        dense=Table.line(prompt[0], prompt[1]),
        pair=Table.constant(prompt[2]),
        decode_fixed=Table.line(decode[0], decode[1]),
        decode_context=Table.constant(decode[2]),
    )


def _middle(rows: deque[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Take the row of median speed: all of one row, so that its sizes belong to its time."""
    return sorted(rows, key=lambda row: row[2])[len(rows) // 2]
