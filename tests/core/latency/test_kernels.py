"""Kernels: no kernel beats its floor where the slowdown is 1, and each floor is the physics it names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.grid import Grid
from core.latency.kernels import (
    ALL_REDUCE_LAUNCH_S,
    ATTENTION_LAUNCH_S,
    GEMM_LAUNCH_S,
    Kernels,
    Peaks,
    decode_attention_floor_s,
)

PEAKS = Peaks(bfloat16_flops=1e15, fp8_flops=2e15, bytes_per_s=4e12, link_bytes_per_s=450e9)


def ideal(axes: int) -> Grid:
    return Grid(((1.0,),) * axes, (1.0,))


KERNELS = Kernels(PEAKS, ideal(3), ideal(3), ideal(4), ideal(3), ideal(2))


def test_a_small_product_reads_its_weights() -> None:
    assert KERNELS.gemm_s(1, 8192, 8192) == pytest.approx(GEMM_LAUNCH_S + (2 * 8192**2 + 4 * 8192) / 4e12)


def test_a_large_product_computes() -> None:
    assert KERNELS.gemm_s(8192, 8192, 8192) == pytest.approx(GEMM_LAUNCH_S + 2 * 8192**3 / 1e15)


def test_fp8_computes_twice_as_fast_where_the_device_can() -> None:
    slow = Kernels(Peaks(1e15, None, 4e12, 450e9), ideal(3), ideal(3), ideal(4), ideal(3), ideal(2))
    fast_s, slow_s = (k.gemm_s(8192, 8192, 8192, weight_bytes=1.0) - GEMM_LAUNCH_S for k in (KERNELS, slow))
    assert slow_s == pytest.approx(2 * fast_s)


def test_decode_attention_reads_the_cache() -> None:
    found_s = KERNELS.decode_attention_s(64, 4096, 8, kv_bytes=8 * 2 * 128 * 2, flops=4 * 64 * 128)
    assert found_s == pytest.approx(ATTENTION_LAUNCH_S + 64 * 4096 * 4096 / 4e12)
    assert found_s == pytest.approx(float(decode_attention_floor_s(PEAKS, np.array([[64.0, 4096.0, 8.0]]))[0]))


def test_long_prompts_compute_half_the_square() -> None:
    found_s = KERNELS.prefill_attention_s(1, 10_000, 32, 8, 128)
    assert found_s == pytest.approx(ATTENTION_LAUNCH_S + 4 * 32 * 128 * 10_000 * 10_001 / 2 / 1e15)


def test_one_device_sums_nothing() -> None:
    assert KERNELS.all_reduce_s(1, 1e9) == 0.0
    assert KERNELS.all_reduce_s(2, 450e9) == pytest.approx(ALL_REDUCE_LAUNCH_S + 1.0)


@given(st.integers(1, 4096), st.integers(16, 65536), st.integers(16, 65536), st.sampled_from([0.5, 1.0, 2.0]))
def test_more_tokens_are_never_faster(tokens: int, outputs: int, inputs: int, weight_bytes: float) -> None:
    one, two = (KERNELS.gemm_s(n, outputs, inputs, weight_bytes=weight_bytes) for n in (tokens, 2 * tokens))
    assert GEMM_LAUNCH_S < one <= two
