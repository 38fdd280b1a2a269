"""Times of single kernels on one kind of GPU: a floor from physics times a fitted slowdown.

Owns the floors and the value that holds their constants and slowdowns. Must not know models (core.latency.device) or
where the slowdowns come from (core.latency.device_fit). A floor is launch + max(operations / peak, bytes / bandwidth).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.latency.grid import Floats, Grid

# What a kernel takes when it has nothing to do, seconds; the least latencies in the tables of H100 and H200.
GEMM_LAUNCH_S = 2.5e-6
ATTENTION_LAUNCH_S = 11e-6
ALL_REDUCE_LAUNCH_S = 4.2e-6
_HALF_BYTES = 2.0  # bfloat16
MEASURED_HEAD_DIM = 128  # of the attention tables; other sizes only move the floor


@dataclass(frozen=True, slots=True)
class Peaks:
    """The data sheet: dense operations and bytes per second."""

    bfloat16_flops: float
    fp8_flops: float | None  # None: fp8 weights are multiplied in bfloat16
    bytes_per_s: float
    link_bytes_per_s: float  # of one device to the others of its node, one direction


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels of one device. The axes of each slowdown stand beside it."""

    peaks: Peaks
    gemm_bfloat16: Grid  # tokens, outputs, inputs
    gemm_fp8: Grid  # tokens, outputs, inputs
    prefill_attention: Grid  # prompts, tokens of each, heads, heads per KV head
    decode_attention: Grid  # sequences, context tokens of each, KV heads
    all_reduce: Grid  # devices, bytes

    def gemm_s(self, tokens: float, outputs: float, inputs: float, *, weight_bytes: float = 2.0) -> float:
        """Return the seconds of tokens x inputs times inputs x outputs with weights of `weight_bytes` each."""
        fp8 = weight_bytes == 1.0 and self.peaks.fp8_flops is not None
        point = np.array([[tokens, outputs, inputs]], np.float64)
        floor_s = gemm_floor_s(self.peaks, point, weight_bytes=weight_bytes, fp8=fp8)
        grid = self.gemm_fp8 if fp8 else self.gemm_bfloat16
        return float(floor_s[0]) * grid(tokens, outputs, inputs)

    def prefill_attention_s(self, prompts: float, tokens: float, heads: float, kv_heads: float, head_dim: int) -> float:
        """Return the seconds of one layer's causal attention of `prompts` prompts of `tokens` tokens each."""
        point = np.array([[prompts, tokens, heads, heads / kv_heads]], np.float64)
        floor_s = prefill_attention_floor_s(self.peaks, point, head_dim=head_dim)
        return float(floor_s[0]) * self.prefill_attention(prompts, tokens, heads, heads / kv_heads)

    def decode_attention_s(self, seqs: float, context: float, kv_heads: float, kv_bytes: float, flops: float) -> float:
        """Return the seconds of one layer's attention of `seqs` new tokens over `context` tokens each.

        `kv_bytes` are read and `flops` operations done for each token of context.
        """
        per_token_s = max(kv_bytes / self.peaks.bytes_per_s, flops / self.peaks.bfloat16_flops)
        slowdown = self.decode_attention(seqs, max(context, 1.0), kv_heads)
        return (seqs * context * per_token_s + ATTENTION_LAUNCH_S) * slowdown

    def all_reduce_s(self, devices: int, num_bytes: float) -> float:
        """Return the seconds of a sum over `devices` devices of one node; 0 for one device."""
        if devices == 1:
            return 0.0
        point = np.array([[devices, num_bytes]], np.float64)
        return float(all_reduce_floor_s(self.peaks, point)[0]) * self.all_reduce(devices, num_bytes)


def gemm_floor_s(peaks: Peaks, points: Floats, *, weight_bytes: float, fp8: bool) -> Floats:
    """Return the floors at (tokens, outputs, inputs); activations in fp8 where weights are multiplied so."""
    tokens, outputs, inputs = points.T
    flops = peaks.fp8_flops if fp8 and peaks.fp8_flops else peaks.bfloat16_flops
    activation_bytes = 1.0 if fp8 else _HALF_BYTES
    moved = weight_bytes * outputs * inputs + activation_bytes * tokens * inputs + _HALF_BYTES * tokens * outputs
    floor: Floats = np.maximum(2 * tokens * outputs * inputs / flops, moved / peaks.bytes_per_s) + GEMM_LAUNCH_S
    return floor


def prefill_attention_floor_s(peaks: Peaks, points: Floats, *, head_dim: int = MEASURED_HEAD_DIM) -> Floats:
    """Return the floors at (prompts, tokens, heads, heads per KV head)."""
    prompts, tokens, heads, share = points.T
    flops = 4 * prompts * heads * head_dim * tokens * (tokens + 1) / 2
    moved = prompts * tokens * head_dim * _HALF_BYTES * 2 * (heads + heads / share)
    floor: Floats = np.maximum(flops / peaks.bfloat16_flops, moved / peaks.bytes_per_s) + ATTENTION_LAUNCH_S
    return floor


def decode_attention_floor_s(peaks: Peaks, points: Floats) -> Floats:
    """Return the floors at (sequences, context tokens, KV heads) with a bfloat16 cache of the measured head size."""
    seqs, context, kv_heads = points.T
    moved = seqs * context * kv_heads * 2 * MEASURED_HEAD_DIM * _HALF_BYTES
    floor: Floats = moved / peaks.bytes_per_s + ATTENTION_LAUNCH_S
    return floor


def all_reduce_floor_s(peaks: Peaks, points: Floats) -> Floats:
    """Return the floors at (devices, bytes): a ring moves 2 (n - 1) / n of the bytes through each link."""
    devices, num_bytes = points.T
    floor: Floats = 2 * (devices - 1) / devices * num_bytes / peaks.link_bytes_per_s + ALL_REDUCE_LAUNCH_S
    return floor
