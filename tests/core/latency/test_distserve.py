"""DistServe's coefficients. Invariant: a shape gives the times of simdistserve's formulas, whatever the batch."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.latency.distserve import ServedModel, distserve_profile
from core.latency.profile import EngineProfile
from core.latency.step import Step, attention_pairs

_MODEL = ServedModel("facebook/opt-13b", kv_bytes_per_token=819_200, max_model_len=2048)
_FIT = {
    "prefill": [18.1, 0.102, 7.12e-6],
    "decoding_smallbs": [19.9, 6.27e-4, 0.0385],
    "decoding_largebs": [7.17, 5.8e-4, 0.158],
    "decoding_large_small_bs_threshold": 95,
}
_CAPACITIES = "model,tp,pp,max_num_tokens\nfacebook/opt-13b,1,1,66144\nfacebook/opt-13b,1,2,163008\nother,1,1,7\n"
_lengths = st.lists(st.integers(1, 2048), min_size=1, max_size=20)


def _profile(*, overhead: bool = True, coefficients: object = None, capacities: str = _CAPACITIES) -> EngineProfile:
    text = json.dumps({"distserve": {"facebook/opt-13b": {"1": _FIT}}} if coefficients is None else coefficients)
    return distserve_profile(text, capacities, _MODEL, device="a100", source="", iteration_overhead=overhead)


@given(_lengths, st.sampled_from([1, 2]), st.booleans())
def test_prefill_is_that_of_the_formula(lengths: list[int], stages: int, overhead: bool) -> None:
    a, b, c = 18.1, 0.102, 7.12e-6
    tokens = sum(lengths)
    each_stage_ms = (a + b * tokens + c * sum(n * n for n in lengths)) / stages + stages
    wanted_ms = each_stage_ms * stages + (2 + 1e-4 * tokens if overhead else 0)
    step = Step(tokens, len(lengths), sum(attention_pairs(n) for n in lengths))
    cost = _profile(overhead=overhead).shape(1, stages).cost
    assert cost.seconds(step) * 1e3 == pytest.approx(wanted_ms, rel=1e-9)


@given(st.integers(1, 300), st.integers(1, 2048), st.booleans())
def test_decode_is_that_of_the_regime_of_the_batch(batch: int, length: int, overhead: bool) -> None:
    a, b, c = (19.9, 6.27e-4, 0.0385) if batch < 95 else (7.17, 5.8e-4, 0.158)
    wanted_ms = a + b * batch * (length + 1) + c * batch + (2 + 1e-4 * batch * length if overhead else 0)
    cost = _profile(overhead=overhead).shape(1).cost
    assert cost.decode_s(batch, batch * (length + 1)) * 1e3 == pytest.approx(wanted_ms, rel=1e-9)


def test_sizes_are_those_with_coefficients_and_capacity() -> None:
    profile = _profile(capacities=_CAPACITIES + "facebook/opt-13b,8,1,744208\n")
    assert [(s.tensor_parallel, s.pipeline_parallel, s.kv_capacity_tokens) for s in profile.shapes] == [
        (1, 1, 66144),
        (1, 2, 163008),
    ]


@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        ({"vllm": {}}, "no engine 'distserve'; they have vllm"),
        ({"distserve": {"facebook/opt-66b": {}}}, "no model 'facebook/opt-13b'; they have facebook/opt-66b"),
        ({"distserve": {"facebook/opt-13b": {"1": {**_FIT, "prefill": [1, 2]}}}}, r"opt-13b\.1\.prefill"),
        ({"distserve": {"facebook/opt-13b": {"2": _FIT}}}, "no KV capacity"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(coefficients: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _profile(coefficients=coefficients)


def test_capacities_without_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_tokens"):
        _profile(capacities="model,tp,pp\nfacebook/opt-13b,1,1\n")
