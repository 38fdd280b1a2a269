"""Fits of measured steps.

Invariants, for any linear truth and any order of the samples: tables are never negative, D and F never fall, and the
fit predicts steps that it has not seen.
"""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from core.latency.fit import Fit, Sample, fit_step_cost
from core.latency.step import Step, StepCost, Table, attention_pairs

_ROOFLINE = StepCost(
    dense=Table((0.0, 256.0, 4096.0), (0.012, 0.012, 0.150)),
    pair=Table.constant(2e-9),
    decode_fixed=Table((1.0, 64.0, 256.0), (0.010, 0.012, 0.018)),
    decode_context=Table.constant(9e-8),
)


def _steps() -> list[Step]:
    lengths = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 3000, 4096)
    prefill = [Step(n, 1, attention_pairs(n, cached)) for n in lengths for cached in (0, 1024)]
    decode = [Step(decode_seqs=b, context_tokens=b * c) for b in (1, 2, 4, 8, 16, 32, 64) for c in (128, 512, 2048)]
    return prefill + decode


def _measure(cost: StepCost, steps: list[Step], *, noise: float = 0.0, repeats: int = 1) -> list[Sample]:
    dice = random.Random(0)
    return [Sample(s, cost.seconds(s) * dice.gauss(1.0, noise)) for s in steps for _ in range(repeats)]


def _assert_physical(fit: Fit) -> None:
    cost = fit.cost
    for table in (cost.dense, cost.pair, cost.decode_fixed, cost.decode_context):
        assert min(table.value) >= 0.0
    for table in (cost.dense, cost.decode_fixed):
        assert all(a <= b + 1e-15 for a, b in pairwise(table.value))


def test_a_roofline_is_found_from_exact_times() -> None:
    fit = fit_step_cost(_measure(_ROOFLINE, _steps()))
    _assert_physical(fit)
    assert fit.prefill_error < 0.05
    assert fit.decode_error < 0.02
    assert fit.cost.prefill_s(1500) == pytest.approx(_ROOFLINE.prefill_s(1500), rel=0.05)
    assert fit.cost.prefill_s(100) == pytest.approx(0.012, rel=0.05)
    assert fit.cost.decode_s(24, 24_000) == pytest.approx(_ROOFLINE.decode_s(24, 24_000), rel=0.02)


def test_the_error_is_that_of_unseen_steps() -> None:
    fit = fit_step_cost(_measure(_ROOFLINE, _steps(), noise=0.05, repeats=1))
    truth = [fit.cost.seconds(s) / _ROOFLINE.seconds(s) - 1.0 for s in _steps()]
    assert 0.03 < fit.decode_error < 0.12
    assert float(np.std(truth)) < 0.06
    assert len(fit.prefill_residuals) + len(fit.decode_residuals) == len(_steps())


def test_one_wild_repeat_of_a_step_does_not_matter() -> None:
    samples = _measure(_ROOFLINE, _steps(), repeats=3)
    wild = [Sample(s.step, s.seconds * (50.0 if i % 3 == 0 else 1.0)) for i, s in enumerate(samples)]
    assert fit_step_cost(wild).cost == fit_step_cost(samples).cost


def test_a_step_that_was_always_disturbed_hardly_matters() -> None:
    samples = _measure(_ROOFLINE, _steps(), noise=0.005)
    samples[9] = Sample(samples[9].step, samples[9].seconds * 10.0)
    fit = fit_step_cost(samples)
    assert fit.cost.prefill_s(1500) == pytest.approx(_ROOFLINE.prefill_s(1500), rel=0.1)


def test_ten_rows_are_enough() -> None:
    steps = [Step(n, 1, attention_pairs(n)) for n in (32, 128, 512, 1024, 2048)]
    steps += [Step(decode_seqs=b, context_tokens=b * c) for b, c in ((1, 64), (1, 2048), (4, 512), (8, 64), (8, 2048))]
    truth = StepCost(Table.line(0.005, 1e-4), Table.constant(1e-8), Table.line(0.006, 1e-4), Table.constant(1e-7))
    fit = fit_step_cost(_measure(truth, steps))
    _assert_physical(fit)
    assert fit.cost.decode_s(6, 6000) == pytest.approx(truth.decode_s(6, 6000), rel=0.05)
    assert fit.cost.prefill_s(700) == pytest.approx(truth.prefill_s(700), rel=0.15)
    assert fit.mixed_error is None


def test_what_the_context_costs_beside_prompts_is_found() -> None:
    truth = StepCost(
        _ROOFLINE.dense, _ROOFLINE.pair, _ROOFLINE.decode_fixed, _ROOFLINE.decode_context, 0.0, Table.constant(2e-7)
    )
    mixed = [
        Step(n, 1, attention_pairs(n), b, b * c) for n in (64, 512, 2048) for b in (4, 16, 64) for c in (512, 2048)
    ]
    fit = fit_step_cost(_measure(truth, _steps() + mixed))
    assert fit.cost.mixed_context is not None
    assert fit.cost.mixed_context(64) == pytest.approx(2e-7, rel=0.05)
    assert fit.mixed_error is not None
    assert fit.mixed_error < 0.05
    assert len(fit.mixed_residuals) == len(mixed)


def test_the_price_of_a_prompt_is_told_from_that_of_its_tokens() -> None:
    truth = StepCost(_ROOFLINE.dense, Table.constant(0.0), _ROOFLINE.decode_fixed, _ROOFLINE.decode_context, 0.004)
    batches = [Step(n * k, k, k * attention_pairs(n)) for n in (64, 256, 512) for k in (1, 2, 4, 8)]
    fit = fit_step_cost(_measure(truth, _steps() + batches))
    assert fit.cost.prefill_seq_s == pytest.approx(0.004, rel=0.15)


@pytest.mark.parametrize("kind", ["prefill-only", "decode-only"])
def test_a_missing_kind_of_step_is_named(kind: str) -> None:
    steps = [s for s in _steps() if bool(s.prefill_tokens) == (kind == "decode-only")]
    with pytest.raises(ConfigError, match=f"0 unlike {kind} steps"):
        fit_step_cost(_measure(_ROOFLINE, steps))


@settings(max_examples=15)
@given(
    st.floats(1e-4, 0.1),
    st.floats(1e-6, 1e-3),
    st.floats(1e-4, 0.1),
    st.floats(0, 1e-3),
    st.floats(0, 1e-6),
    st.randoms(),
)
def test_linear_truths_are_found_in_any_order(
    floor: float, token: float, fixed: float, seq: float, context: float, dice: random.Random
) -> None:
    truth = StepCost(Table.line(floor, token), Table.constant(0.0), Table.line(fixed, seq), Table.constant(context))
    samples = _measure(truth, _steps()[::2])
    dice.shuffle(samples)
    fit = fit_step_cost(samples)
    _assert_physical(fit)
    for step in _steps():
        assert fit.cost.seconds(step) == pytest.approx(truth.seconds(step), rel=0.03)
