"""From measured engine steps to the time of any step, with the error that the fit makes on rows it has not seen.

Owns the choice of knots and the fit of the tables of core.latency.step. Must not know who measured the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.latency.least_squares import Floats, robust_non_negative
from core.latency.step import Step, StepCost, Table

Rows = NDArray[np.intp]

# Knots of the rising and of the free table that are tried, simple ones first.
_SIZES = ((2, 1), (3, 1), (4, 1), (4, 2), (6, 1), (6, 2), (8, 1), (8, 2), (10, 1), (8, 4), (12, 4), (12, 6), (16, 8))
_GAIN = 0.95  # a richer form must bring the error on unseen rows below this share of the simpler one's
_LEAST_SHAPES = 3
_MIXED_KNOTS = 5
_FEW_SHAPES = 30  # up to so many, each is kept out alone


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step."""

    step: Step
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A step cost and how far it is off: relative errors, (predicted - measured) / measured, of unlike steps."""

    cost: StepCost
    prefill_error: float  # root mean square over steps that were kept out of the fit
    decode_error: float
    mixed_error: float | None  # None: too few mixed steps were measured
    prefill_residuals: Floats  # one for each unlike step, kept out of the fit that predicts it
    decode_residuals: Floats
    mixed_residuals: Floats


@dataclass(frozen=True, slots=True)
class _Term:
    """One table of the cost: time = weight * table(x)."""

    x: Floats
    weight: Floats
    at: tuple[float, ...]
    rising: bool  # never falls and goes straight on; else: never negative, flat after the last knot

    def columns(self) -> Floats:
        """Return the table's basis at `x`, times the weight; no coefficient of it may be negative."""
        at = np.array(self.at)
        if self.rising:
            # The value at the first knot, then the slope of each piece.
            ends = np.append(at[1:-1], np.inf) if len(at) > 1 else np.zeros(0)
            pieces = [np.clip(self.x, low, high) - low for low, high in zip(at[:-1], ends, strict=True)]
            basis = np.column_stack([np.ones_like(self.x), *pieces])
        else:
            basis = np.column_stack([np.interp(self.x, at, row) for row in np.eye(len(at))])
        weighted: Floats = basis * self.weight[:, None]
        return weighted

    def table(self, coefficients: Floats) -> Table:
        """Make the table of the fitted coefficients."""
        if self.rising:
            steps = coefficients[1:] * np.diff(self.at)
            return Table(self.at, tuple(float(v) for v in coefficients[0] + np.append(0.0, np.cumsum(steps))))
        values = tuple(float(v) for v in coefficients)
        if len(values) == 1:
            return Table.constant(values[0])
        return Table((*self.at, 2.0 * self.at[-1]), (*values, values[-1]))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Steps of one kind, as columns: time = rising(x) + free(x) * product + per_seq * seqs."""

    x: Floats  # tokens of a prefill step, sequences of a decode step
    product: Floats  # attention pairs, or context tokens
    seqs: Floats  # prompts of a prefill step; zeros of a decode step
    seconds: Floats

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, rows: Rows) -> _Rows:
        """Return some of the rows."""
        return _Rows(self.x[rows], self.product[rows], self.seqs[rows], self.seconds[rows])


@dataclass(frozen=True, slots=True)
class _Form:
    """The fitted tables of one kind of step."""

    rising: Table
    free: Table
    per_seq_s: float

    def seconds(self, rows: _Rows) -> Floats:
        """Predict every row."""
        predicted: Floats = (
            _values(self.rising, rows.x) + _values(self.free, rows.x) * rows.product + self.per_seq_s * rows.seqs
        )
        return predicted

    def residuals(self, rows: _Rows) -> Floats:
        """Return the relative errors."""
        relative: Floats = self.seconds(rows) / rows.seconds - 1.0
        return relative


def fit_step_cost(samples: Sequence[Sample], *, folds: int = 5) -> Fit:
    """Fit the step cost by least squares on relative error; repeats of a step count as their median.

    The number of knots is the smallest that predicts unseen steps well, found by cross-validation in which all repeats
    of a step are on one side. Raises ConfigError when too few unlike prefill-only or decode-only steps were measured.
    """
    steps = _medians(samples)
    prefill = _columns([s for s in steps if s.step.prefill_tokens and not s.step.decode_seqs], of_decode=False)
    decode = _columns([s for s in steps if s.step.decode_seqs and not s.step.prefill_tokens], of_decode=True)
    for kind, rows in (("prefill-only", prefill), ("decode-only", decode)):
        if len(rows) < _LEAST_SHAPES:
            raise ConfigError(f"{len(rows)} unlike {kind} steps were measured; a fit needs {_LEAST_SHAPES} or more")
    prompts, prefill_residuals = _choose(prefill, folds)
    outputs, decode_residuals = _choose(decode, folds)
    cost = StepCost(prompts.rising, prompts.free, outputs.rising, outputs.free, prompts.per_seq_s)
    mixed = [s for s in steps if s.step.decode_seqs and s.step.prefill_tokens]
    cost, mixed_residuals = _with_mixed(cost, mixed, folds)
    return Fit(
        cost=cost,
        prefill_error=_rms(prefill_residuals),
        decode_error=_rms(decode_residuals),
        mixed_error=_rms(mixed_residuals) if mixed else None,
        prefill_residuals=prefill_residuals,
        decode_residuals=decode_residuals,
        mixed_residuals=mixed_residuals,
    )


def _medians(samples: Sequence[Sample]) -> list[Sample]:
    times: dict[Step, list[float]] = {}
    for sample in samples:
        if sample.seconds > 0:
            times.setdefault(sample.step, []).append(sample.seconds)
    return [Sample(step, float(np.median(seconds))) for step, seconds in times.items()]


def _columns(samples: list[Sample], *, of_decode: bool) -> _Rows:
    steps = [s.step for s in samples]
    if of_decode:
        numbers = [(s.decode_seqs, float(s.context_tokens), 0) for s in steps]
    else:
        numbers = [(s.prefill_tokens, s.attention_pairs, s.prefill_seqs) for s in steps]
    x, product, seqs = np.array(numbers, np.float64).reshape(-1, 3).T
    return _Rows(x, product, seqs, np.array([s.seconds for s in samples], np.float64))


def _choose(rows: _Rows, folds: int) -> tuple[_Form, Floats]:
    """Fit the smallest form that generalises; return it with the residuals of rows kept out."""
    num_folds = len(rows) if len(rows) <= _FEW_SHAPES else folds
    fold = np.random.default_rng(0).permutation(len(rows)) % num_folds
    best: tuple[float, tuple[int, int], Floats] | None = None
    for size in _SIZES:
        if best is not None and sum(size) > len(rows) - 2:
            continue
        residuals = np.empty(len(rows))
        for i in range(num_folds):
            kept_out = rows.take(np.flatnonzero(fold == i))
            residuals[fold == i] = _fit(rows.take(np.flatnonzero(fold != i)), size).residuals(kept_out)
        error = _rms(residuals)
        if best is None or error < _GAIN * best[0]:
            best = (error, size, residuals)
    assert best is not None
    return _fit(rows, best[1]), best[2]


def _fit(rows: _Rows, size: tuple[int, int]) -> _Form:
    rising = _Term(rows.x, np.ones(len(rows)), _knots(rows.x, size[0]), rising=True)
    free = _Term(rows.x, rows.product, _knots(rows.x, size[1]), rising=False)
    blocks = [rising.columns(), free.columns()]
    if len(np.unique(rows.seqs)) > 1:  # else the same as the constant
        blocks.append(rows.seqs[:, None])
    matrix = np.column_stack(blocks) / rows.seconds[:, None]
    x = robust_non_negative(matrix, np.ones(len(rows)))
    first, second = blocks[0].shape[1], blocks[1].shape[1]
    per_seq_s = float(x[-1]) if len(blocks) > 2 else 0.0
    return _Form(rising.table(x[:first]), free.table(x[first : first + second]), per_seq_s)


def _knots(x: Floats, count: int) -> tuple[float, ...]:
    """Pick up to `count` of the measured values, evenly by ratio; both ends are among them when count > 1."""
    values = np.unique(x)
    if count == 1 or len(values) == 1:
        return (float(values[0]),)
    wanted = np.geomspace(values[0], values[-1], count)
    nearest = np.abs(np.log(values)[None, :] - np.log(wanted)[:, None]).argmin(axis=1)
    return tuple(float(v) for v in values[np.unique(nearest)])


def _with_mixed(cost: StepCost, mixed: list[Sample], folds: int) -> tuple[StepCost, Floats]:
    """Fit what the context costs beside prompts, all else given; return residuals of rows kept out, too."""
    if len(mixed) < _LEAST_SHAPES:
        return cost, np.zeros(0)
    bare = replace(cost, mixed_context=Table.constant(0.0))
    batch = np.array([s.step.decode_seqs for s in mixed], np.float64)
    context = np.array([s.step.context_tokens for s in mixed], np.float64)
    seconds = np.array([s.seconds for s in mixed])
    rest = np.array([bare.seconds(s.step) for s in mixed])
    at = _knots(batch, max(1, min(_MIXED_KNOTS, len(mixed) // 8)))

    def fitted(rows: Rows) -> Table:
        term = _Term(batch[rows], context[rows] / seconds[rows], at, rising=False)
        return term.table(robust_non_negative(term.columns(), 1.0 - rest[rows] / seconds[rows]))

    num_folds = len(mixed) if len(mixed) <= _FEW_SHAPES else folds
    fold = np.random.default_rng(0).permutation(len(mixed)) % num_folds
    residuals = np.empty(len(mixed))
    for i in range(num_folds):
        kept_out = fold == i
        predicted = rest + _values(fitted(np.flatnonzero(~kept_out)), batch) * context
        residuals[kept_out] = predicted[kept_out] / seconds[kept_out] - 1.0
    return replace(cost, mixed_context=fitted(np.arange(len(mixed)))), residuals


def _values(table: Table, x: Floats) -> Floats:
    at, value = np.array(table.at), np.array(table.value)
    result: Floats = np.interp(x, at, value) + table.slope_beyond * np.maximum(x - at[-1], 0.0)
    return result


def _rms(residuals: Floats) -> float:
    return float(np.sqrt(np.mean(residuals**2)))
