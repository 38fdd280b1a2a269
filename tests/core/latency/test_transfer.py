"""Transfers. Invariant: the time never falls as the bytes grow, whatever was measured."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.latency.transfer import Line, fit_transfer, kv_bytes_per_token

_SIZES = [2.0**k for k in range(10, 31)]


def test_latency_and_bandwidth_are_found() -> None:
    truth = Line(latency_s=20e-6, bytes_per_s=10e9)
    model = fit_transfer([(size, truth.seconds(size)) for size in _SIZES])
    assert model.seconds(3e7) == pytest.approx(truth.seconds(3e7), rel=0.05)
    near = model.line(1 << 20)
    assert near.seconds(1 << 20) == pytest.approx(truth.seconds(1 << 20), rel=0.1)
    assert near.bytes_per_s == pytest.approx(10e9, rel=0.1)
    assert model.error < 0.1


def test_the_bandwidth_of_small_transfers_is_their_own() -> None:
    def slow_when_small(size: float) -> float:
        return 10e-6 + size / (1e9 if size < 1e6 else 1e10) + (0 if size < 1e6 else 9e-4)

    model = fit_transfer([(size, slow_when_small(size)) for size in _SIZES])
    assert model.line(2e5).bytes_per_s < 3e9
    assert model.line(2e8).bytes_per_s > 8e9


def test_two_sizes_are_too_few() -> None:
    with pytest.raises(ConfigError, match="transfers of 2 sizes"):
        fit_transfer([(1e3, 1e-5), (1e6, 1e-4), (1e6, 2e-4)])


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(1e-7, 1.0)), min_size=8, max_size=60, unique_by=lambda p: p[0]))
def test_more_bytes_never_take_less(points: list[tuple[float, float]]) -> None:
    model = fit_transfer(points)
    times = [model.seconds(size) for size in (1.0, *sorted(size for size, _ in points), 1e10)]
    assert all(a <= b * (1 + 1e-9) + 1e-15 for a, b in pairwise(times))


def test_kv_bytes_of_known_models() -> None:
    assert kv_bytes_per_token(layers=40, kv_heads=40, head_dim=128) == 819_200  # OPT-13B, fp16
    assert kv_bytes_per_token(layers=32, kv_heads=8, head_dim=128, value_bytes=1.0) == 65_536  # Llama-3.1-8B, fp8
