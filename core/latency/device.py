"""From a GPU and the shape of a model to the cost of its steps: sums the kernels of all layers.

Owns the sum, the room for KV and the sizes worth offering. Must not know files (core.latency.device_file) or how the
kernels were fitted. The tables are physics and fitted kernels; what an engine adds on top is EngineCost, calibrated on
measured servings (bench.fidelity_silicon).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError
from core.latency.kernels import ATTENTION_LAUNCH_S, GEMM_LAUNCH_S, Kernels
from core.latency.model_shape import Matrix, ModelShape
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table

_TOKENS = tuple(float(2**i) for i in range(15))  # knots of D and G: 1 to 16,384 tokens
_SEQS = tuple(float(2**i) for i in range(11))  # knots of F and C: 1 to 1,024 sequences
_CONTEXTS = (1024.0, 4096.0)  # tokens at which the slope over context is taken
# Norms, rotary embedding, KV write, activation, sampling: five small kernels a layer at the launch time of a GEMM, and
# about six passes over the hidden state. Estimated, not measured; EngineCost corrects their sum.
_SMALL_KERNELS_S, _HIDDEN_PASSES = 5 * 2.0e-6, 6.0
_ACTIVATION_BYTES = 2.0
# Activations of a full step, CUDA graphs and the communication buffers: what vLLM's start-up takes, roughly.
_ACTIVATION_RESERVE_BYTES = 3e9
_NODE_DEVICES = 8
_TENSOR_SIZES = (1, 2, 4, 8)
_LEAST_KV_TOKENS = 2048  # less room than for one short conversation is no room
# Between nodes: 400 Gbit/s for each device (ConnectX-7, the usual H100 and H200 server) and a NIC's latency twice.
_NETWORK_BYTES_PER_S, _NETWORK_LATENCY_S = 50e9, 30e-6


@dataclass(frozen=True, slots=True)
class EngineCost:
    """What an engine makes of the kernels' times; 1 and 0 mean kernels only."""

    prefill_scale: float = 1.0
    decode_scale: float = 1.0
    step_s: float = 0.0  # scheduling and launching, in every step
    request_s: float = 0.0  # time to first token beyond queue and steps
    prefill_error: float = 0.0  # standard deviation of the relative error of TTFT, on servings kept out of the fit
    decode_error: float = 0.0  # the same of TPOT
    expert_scale: float = 1.0  # of computing experts over the data sheet's floor: each has few rows, no table covers it


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One kind of GPU."""

    name: str  # "h100-sxm"
    memory_bytes: float
    kernels: Kernels
    engine: EngineCost  # of dense models
    routed_engine: EngineCost  # of models with experts, whose kernels no table covers
    source: str

    def engine_for(self, shape: ModelShape) -> EngineCost:
        """Return what the engine adds for this kind of model."""
        return self.routed_engine if shape.experts else self.engine


def step_cost(
    device: DeviceProfile,
    shape: ModelShape,
    *,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    expert_devices: int | None = None,
    engine: EngineCost | None = None,
) -> StepCost:
    """Derive the cost of one worker's steps from the kernels.

    `expert_devices` share the experts when several workers attend to requests of their own beside common experts
    (attention data parallelism; default: the worker's own devices). `engine` replaces what the device's file says.
    """
    over = engine or device.engine_for(shape)
    model = _Model(device.kernels, shape, tensor_parallel, pipeline_parallel, expert_devices or tensor_parallel, over)
    bases = [model.decode_attention_s(b, 1.0) for b in _SEQS]
    slopes = [
        sum((model.decode_attention_s(b, c) - base) / (b * c) for c in _CONTEXTS) / len(_CONTEXTS)
        for b, base in zip(_SEQS, bases, strict=True)
    ]
    fixed = [model.tokens_s(b) + model.output_s(b) + base for b, base in zip(_SEQS, bases, strict=True)]
    launches_s = shape.layers * ATTENTION_LAUNCH_S + model.output_s(1)
    return StepCost(
        dense=Table(
            _TOKENS, tuple((model.tokens_s(n) + launches_s) * over.prefill_scale + over.step_s for n in _TOKENS)
        ),
        pair=Table(_TOKENS, tuple(model.pair_s(n) * over.prefill_scale for n in _TOKENS)),
        decode_fixed=Table(_SEQS, tuple(f * over.decode_scale + over.step_s for f in fixed)),
        decode_context=Table(_SEQS, tuple(max(s, 0.0) * over.decode_scale for s in slopes)),
    )


def kv_capacity_tokens(
    device: DeviceProfile,
    shape: ModelShape,
    *,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    expert_devices: int | None = None,
    utilization: float = 0.9,
) -> int:
    """Return the tokens of KV that fit beside weights and activations; 0 or less when the weights do not fit.

    `utilization` is the share of memory the engine takes: vLLM's gpu_memory_utilization, 0.9 by default.
    """
    weights = shape.weights_on_device(tensor_parallel, pipeline_parallel, expert_devices)
    free = device.memory_bytes * utilization - weights - _ACTIVATION_RESERVE_BYTES
    return int(free / shape.kv_on_device(tensor_parallel, pipeline_parallel))


def derive(
    device: DeviceProfile, shape: ModelShape, *, tensor_parallel: int, pipeline_parallel: int = 1
) -> ShapeProfile:
    """Derive one worker: the cost of its steps and its room for KV, with the errors that the device's file states."""
    return ShapeProfile(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        cost=step_cost(device, shape, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel),
        kv_capacity_tokens=kv_capacity_tokens(
            device, shape, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel
        ),
        prefill_error=device.engine_for(shape).prefill_error,
        decode_error=device.engine_for(shape).decode_error,
    )


def engine_profile(device: DeviceProfile, shape: ModelShape, *, max_tensor_parallel: int = 8) -> EngineProfile:
    """Derive every worker of 1, 2, 4 or 8 devices and one or two stages that divides the model and holds it.

    Raises ConfigError when the model fits none of them.
    """
    sizes = [tp for tp in _TENSOR_SIZES if tp <= max_tensor_parallel and shape.fits_tensor_parallel(tp)]
    stages = (1, 2) if shape.layers > 1 else (1,)
    all_shapes = (derive(device, shape, tensor_parallel=tp, pipeline_parallel=pp) for tp in sizes for pp in stages)
    shapes = tuple(s for s in all_shapes if s.kv_capacity_tokens >= _LEAST_KV_TOKENS)
    if not shapes:
        raise ConfigError(
            f"{shape.name} needs {shape.weights_on_device(1) / 1e9:.0f} GB for weights, more than "
            f"{2 * max(sizes, default=1)} x {device.name} hold: take a larger GPU, more of them or a quantised model"
        )
    return EngineProfile(
        model=shape.name,
        device=device.name,
        engine="vllm",
        source=device.source,
        shapes=shapes,
        kv_bytes_per_token=shape.kv_bytes_per_token(),
        max_model_len=shape.max_model_len,
        request_overhead_s=device.engine_for(shape).request_s,
    )


@dataclass(frozen=True, slots=True)
class _Model:
    """One model on one worker; every method returns the seconds of all layers."""

    kernels: Kernels
    shape: ModelShape
    tensor_parallel: int
    pipeline_parallel: int
    expert_devices: int
    engine: EngineCost

    def tokens_s(self, tokens: float) -> float:
        """Return all but attention and logits for `tokens` tokens."""
        shape, tp = self.shape, self.tensor_parallel
        time_s = sum(self._matrix_s(matrix, tokens) for matrix in shape.dense_matrices(tp))
        time_s += self._experts_s(tokens)
        state_bytes = tokens * shape.hidden * _ACTIVATION_BYTES
        passes_s = _HIDDEN_PASSES * state_bytes / self.kernels.peaks.bytes_per_s
        time_s += shape.layers * (_SMALL_KERNELS_S + passes_s + 2 * self._sum_s(state_bytes))
        sends = self.pipeline_parallel - 1
        return time_s + sends * (_NETWORK_LATENCY_S + state_bytes / _NETWORK_BYTES_PER_S)

    def output_s(self, seqs: float) -> float:
        """Return the logits of `seqs` sequences."""
        return self._matrix_s(self.shape.output_matrix(self.tensor_parallel), seqs)

    def pair_s(self, tokens: float) -> float:
        """Return the seconds for each query-key pair of a prompt of `tokens` tokens, launches aside."""
        shape, heads = self.shape, self.shape.heads / self.tensor_parallel
        kv_heads, head_dim = self._kv_heads, shape.head_dim
        if shape.latent:  # prefill expands the latent: as many KV heads as heads; keys and values of unlike size
            low = shape.latent
            kv_heads, head_dim = heads, (low.nope_dim + low.rope_dim + low.value_dim) // 2
        tokens = max(tokens, 64.0)  # below, launch is all there is
        layer_s = self.kernels.prefill_attention_s(1, tokens, heads, kv_heads, head_dim) - ATTENTION_LAUNCH_S
        seen = min(1.0, 2 * shape.window / tokens)  # of the pairs, in a windowed layer
        full = shape.layers - shape.windowed_layers
        return max(layer_s, 0.0) * (full + shape.windowed_layers * seen) / (tokens * tokens / 2)

    def decode_attention_s(self, seqs: float, context: float) -> float:
        """Return the attention of `seqs` new tokens over `context` tokens each."""
        shape, kv_heads = self.shape, self._kv_heads
        heads = shape.heads / self.tensor_parallel
        if shape.latent:  # every head reads the one latent vector, as key and as value
            low = shape.latent
            kv_heads, values = 1.0, float(low.kv_rank + low.rope_dim)
            flops = 2 * heads * (2 * low.kv_rank + low.rope_dim)
        else:
            values = 2 * kv_heads * shape.head_dim
            flops = 4 * heads * shape.head_dim
        full = shape.layers - shape.windowed_layers

        def layer_s(tokens: float) -> float:
            return self.kernels.decode_attention_s(seqs, tokens, kv_heads, values * shape.kv_value_bytes, flops)

        windowed_s = layer_s(shape.window) * shape.windowed_layers if shape.windowed_layers else 0.0
        return layer_s(context) * full + windowed_s

    @property
    def _kv_heads(self) -> float:
        return max(1.0, self.shape.kv_heads / self.tensor_parallel)

    def _matrix_s(self, matrix: Matrix, tokens: float) -> float:
        one_s = self.kernels.gemm_s(tokens, matrix.outputs, matrix.inputs, weight_bytes=matrix.weight_bytes)
        return one_s * matrix.count

    def _experts_s(self, tokens: float) -> float:
        """Return the routed layers: reading the touched experts, and computing the routed tokens.

        No kernel table covers grouped products: the terms are the data sheet's floors, the second times a calibrated
        factor. They are added, for with few rows for each expert they overlap little.
        """
        experts, peaks = self.shape.experts, self.kernels.peaks
        if experts is None:
            return 0.0
        tokens *= self.expert_devices / self.tensor_parallel  # all workers' tokens meet at the experts
        touched, time_s = experts.touched(tokens), 0.0
        for matrix in self.shape.expert_matrices(self.expert_devices):
            values = matrix.outputs * matrix.inputs
            fp8 = peaks.fp8_flops if matrix.weight_bytes == 1.0 else None
            read_s = touched * values * matrix.weight_bytes / peaks.bytes_per_s
            compute_s = 2 * tokens * experts.per_token * values / (fp8 or peaks.bfloat16_flops)
            time_s += (GEMM_LAUNCH_S + read_s + self.engine.expert_scale * compute_s) * matrix.count
        return time_s

    def _sum_s(self, num_bytes: float) -> float:
        """Return one all-reduce over the tensor-parallel devices, between nodes in two levels."""
        inside_s = self.kernels.all_reduce_s(min(self.tensor_parallel, _NODE_DEVICES), num_bytes)
        if self.tensor_parallel <= _NODE_DEVICES:
            return inside_s
        return inside_s + _NETWORK_LATENCY_S + 2 * num_bytes / (_NODE_DEVICES * _NETWORK_BYTES_PER_S)
