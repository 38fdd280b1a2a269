"""The form of a step's time.

Invariants: a table is exact at its knots and between its neighbours' values; scaling multiplies; an empty step is free;
more of anything never makes a step shorter when the tables rise.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.step import Step, StepCost, Table, attention_pairs

_COST = StepCost(
    dense=Table((0.0, 100.0, 1000.0), (0.010, 0.010, 0.100)),
    pair=Table.constant(1e-8),
    decode_fixed=Table.line(0.008, 0.0001),
    decode_context=Table.constant(1e-7),
    prefill_seq_s=0.001,
)
_counts = st.integers(0, 4096)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Draw a table that never falls."""
    at = sorted(draw(st.sets(st.integers(0, 5000), min_size=1, max_size=6)))
    value = sorted(draw(st.lists(st.floats(0, 10), min_size=len(at), max_size=len(at))))
    return Table(tuple(float(x) for x in at), tuple(value))


@given(tables())
def test_a_table_is_exact_at_its_knots(table: Table) -> None:
    assert [table(x) for x in table.at] == pytest.approx(table.value)


@given(tables(), st.floats(0, 6000), st.floats(0, 6000))
def test_a_table_of_rising_values_rises(table: Table, x: float, y: float) -> None:
    low, high = sorted((x, y))
    assert table(low) <= table(high) + 1e-9


def test_a_table_is_flat_before_and_straight_after_its_knots() -> None:
    table = Table((10.0, 20.0), (1.0, 3.0))
    assert (table(0), table(15), table(30)) == (1.0, 2.0, pytest.approx(5.0))


@given(tables(), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_table_never_falls_after_its_last_knot(table: Table, x: float, y: float) -> None:
    falling = Table(table.at, table.value[::-1])
    low, high = sorted((x, y))
    assert falling(low) >= falling.value[-1]
    if low >= table.at[-1]:
        assert falling(high) >= falling(low)


@given(st.integers(1, 500_000), st.integers(1, 500_000))
def test_a_longer_prompt_never_takes_less_though_its_pairs_become_cheaper(one: int, other: int) -> None:
    cost = replace(_COST, pair=Table((1.0, 8192.0, 16_384.0), (3e-11, 2e-11, 1.6e-11)))
    shorter, longer = sorted((one + 16_384, other + 16_384))
    assert 0 < cost.prefill_s(shorter) <= cost.prefill_s(longer)


@pytest.mark.parametrize(("at", "value"), [((), ()), ((1.0,), (1.0, 2.0)), ((1.0, 1.0), (1.0, 2.0))])
def test_knots_must_rise_and_have_values(at: tuple[float, ...], value: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="table"):
        Table(at, value)


def test_a_prefill_pays_floor_attention_and_prompts() -> None:
    step = Step(prefill_tokens=550, prefill_seqs=2, attention_pairs=1000.0)
    assert _COST.seconds(step) == pytest.approx(0.055 + 1e-5 + 0.002)


def test_a_decode_step_pays_its_sequences_and_their_context() -> None:
    assert _COST.decode_s(10, 5000) == pytest.approx(0.009 + 0.0005)


def test_a_mixed_step_pays_the_floor_once() -> None:
    step = Step(prefill_tokens=90, prefill_seqs=1, attention_pairs=0.0, decode_seqs=10, context_tokens=5000)
    assert _COST.seconds(step) == pytest.approx(_COST.decode_s(10, 5000) + 0.001)  # 100 tokens are within the floor


def test_the_context_beside_prompts_has_its_own_price() -> None:
    cost = StepCost(_COST.dense, _COST.pair, _COST.decode_fixed, _COST.decode_context, 0.0, Table.constant(3e-7))
    mixed = Step(1, 1, 0.5, 10, 5000)
    assert cost.seconds(mixed) - _COST.seconds(mixed) == pytest.approx(2e-7 * 5000 - 0.001)
    assert cost.decode_s(10, 5000) == _COST.decode_s(10, 5000)


def test_an_empty_step_takes_no_time() -> None:
    assert _COST.seconds(Step()) == 0.0


@given(_counts, _counts, st.integers(0, 256), _counts)
def test_a_longer_prompt_never_takes_less(tokens: int, cached: int, seqs: int, more: int) -> None:
    def time_s(count: int) -> float:
        return _COST.seconds(Step(count, 1 if count else 0, attention_pairs(count, cached), seqs, seqs * 100))

    assert time_s(tokens) <= time_s(tokens + more) + 1e-12


@given(_counts, st.integers(0, 256), st.floats(0.1, 10), st.floats(0.1, 10))
def test_scaling_multiplies_each_kind_of_step(tokens: int, seqs: int, prefill: float, decode: float) -> None:
    scaled = _COST.scaled(prefill=prefill, decode=decode)
    assert scaled.prefill_s(tokens) == pytest.approx(prefill * _COST.prefill_s(tokens))
    assert scaled.decode_s(seqs, 1000) == pytest.approx(decode * _COST.decode_s(seqs, 1000))


@given(_counts, _counts, _counts)
def test_chunks_have_the_pairs_of_the_whole_prompt(first: int, second: int, cached: int) -> None:
    parts = attention_pairs(first, cached) + attention_pairs(second, cached + first)
    assert parts == pytest.approx(attention_pairs(first + second, cached))
