"""The design covers what a planner asks for, fits the engine, and keeps to its time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.profile_design import Limits, Load, Pace, design, join_after_s, samples_of, within
from core.latency.fit import Sample
from core.latency.step import Step

LIMITS = Limits(32, 2048, 4096, 100_000)
PACE = Pace(1e-4, 5e-3)
limits_st = st.builds(
    Limits,
    max_num_seqs=st.integers(1, 256),
    max_num_batched_tokens=st.sampled_from([64, 256, 512, 2048, 8192]),
    max_model_len=st.sampled_from([256, 1024, 4096, 32768]),
    kv_capacity_tokens=st.integers(2_000, 500_000),
    prefix_caching=st.booleans(),
)


@given(limits_st)
@settings(max_examples=60)
def test_every_load_fits_the_engine(limits: Limits) -> None:
    for load in (load for kind in design(limits) for load in kind):
        longest = load.cached_tokens + max((*load.prompts, *load.joining)) + load.output_tokens
        assert longest < limits.max_model_len
        assert len(load.prompts) <= limits.max_num_seqs
        total = load.tokens + len(load.prompts) * load.output_tokens
        assert total <= limits.kv_capacity_tokens
        assert limits.prefix_caching or not load.cached_tokens


def test_prompts_are_measured_up_to_the_budget_in_batches_and_behind_cached_ones() -> None:
    prompts, _, _ = design(LIMITS)
    alone = {load.prompts[0] for load in prompts if len(load.prompts) == 1 and not load.cached_tokens}
    assert {16, 64, 256, 1024, 2048} <= alone
    assert max(alone) > LIMITS.max_num_batched_tokens  # in chunks
    assert any(len(load.prompts) == 8 for load in prompts)
    assert any(load.cached_tokens for load in prompts)


def test_decoding_is_measured_by_batch_and_context() -> None:
    _, decoding, joined = design(LIMITS)
    batches = {len(load.prompts) for load in decoding}
    assert {1, 2, 4, 8, 16, 32} <= batches
    for batch in (1, 8, 32):
        assert len({load.prompts[0] for load in decoding if len(load.prompts) == batch}) >= 3
    assert all(load.joining for load in joined)
    assert joined


@given(limits_st, st.floats(1e-6, 1e-2), st.floats(1e-4, 1e-1), st.floats(1.0, 60.0))
@settings(max_examples=60)
def test_what_is_chosen_keeps_to_the_time_unless_a_fit_would_be_impossible(
    limits: Limits, token_s: float, step_s: float, round_s: float
) -> None:
    kinds, pace = design(limits), Pace(token_s, step_s)
    chosen = within(kinds, pace, round_s)
    assert set(chosen) <= {load for kind in kinds for load in kind}
    spare = sum(sum(sorted(load.seconds(pace) for load in kind)[:5]) for kind in kinds)
    assert sum(load.seconds(pace) for load in chosen) <= round_s + spare + 1e-9
    for kind in kinds:
        assert len(set(chosen) & set(kind)) >= min(5, len(kind))


def test_a_slow_engine_is_measured_with_all_kinds() -> None:
    kinds = design(LIMITS)
    chosen = within(kinds, Pace(1.0, 1.0), 1.0)
    assert [len(set(chosen) & set(kind)) for kind in kinds] == [min(5, len(kind)) for kind in kinds]


def test_a_fast_engine_is_measured_with_the_whole_design() -> None:
    kinds = design(LIMITS)
    assert len(within(kinds, Pace(1e-7, 1e-6), 15.0)) == sum(map(len, kinds))


def test_prompts_join_one_after_the_other() -> None:
    times = [join_after_s(position, PACE) for position in range(4)]
    assert times == sorted(times)
    assert times[0] > PACE.decode_step_s


def test_one_measuring_point_is_its_median() -> None:
    steps = [(Step(decode_seqs=4, context_tokens=1000 + 4 * i), seconds) for i, seconds in enumerate((5.0, 6.0, 99.0))]
    assert samples_of(steps) == (Sample(Step(decode_seqs=4, context_tokens=1004), 6.0),)


def test_unlike_steps_are_unlike_points() -> None:
    steps = [
        (Step(decode_seqs=4, context_tokens=1000), 1.0),
        (Step(decode_seqs=5, context_tokens=1000), 2.0),
        (Step(decode_seqs=4, context_tokens=2000), 3.0),
        (Step(100, 1, 5000.0), 4.0),
        (Step(100, 2, 2500.0), 5.0),
    ]
    assert sorted(sample.seconds for sample in samples_of(steps)) == [1.0, 2.0, 3.0, 4.0, 5.0]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5000), st.floats(0.001, 1.0)), max_size=60))
def test_samples_stay_within_what_was_measured(rows: list[tuple[int, int, float]]) -> None:
    steps = [(Step(decode_seqs=seqs + 1, context_tokens=context), seconds) for seqs, context, seconds in rows]
    samples = samples_of(steps)
    assert len(samples) <= len(steps)
    for sample in samples:
        own = [seconds for step, seconds in steps if step.decode_seqs == sample.step.decode_seqs]
        assert min(own) <= sample.seconds <= max(own)


def test_a_load_counts_all_tokens_computed() -> None:
    assert Load((10, 20), cached_tokens=100, joining=(5,)).tokens == 135
