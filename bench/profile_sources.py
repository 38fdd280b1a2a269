"""Public measurements of engines, as samples for core.latency: the tables of Splitwise, LLMServingSim and Vidur.

Owns what their columns mean. Must not know how a fit is made or where profiles are kept.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import ConfigError
from core.latency.fit import Sample
from core.latency.least_squares import Floats
from core.latency.step import Step, attention_pairs

_MS, _US = 1e-3, 1e-6
# Each is in every decoder layer so often; profiler/models/llama.yaml of github.com/casys-kaist/LLMServingSim. Tables
# of other names (embedding, final_layernorm) count once in a step.
_IN_EACH_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Read a CSV, gzipped when its name ends with .gz. Raises ConfigError naming the file and what it lacks."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    reader = csv.DictReader(io.StringIO(text))
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise ConfigError(f"{path}: has no column {', '.join(missing)}")
    yield from reader


def splitwise_samples(path: Path, *, model: str, hardware: str, tensor_parallel: int) -> list[Sample]:
    """Read data/perf_model.csv of github.com/Mutinifni/splitwise-sim, one prefill and one decode step for each row.

    A row is a batch of equal prompts; its token time is the mean over the output, so it stands for the step half way.
    """
    columns = ("prompt_size", "batch_size", "token_size", "prompt_time", "token_time", "tensor_parallel")
    samples = []
    for row in read_rows(path, ("model", "hardware", *columns)):
        if (row["model"], row["hardware"], int(row["tensor_parallel"])) != (model, hardware, tensor_parallel):
            continue
        prompt, batch, output = (int(row[name]) for name in ("prompt_size", "batch_size", "token_size"))
        prefill = Step(prompt * batch, batch, batch * attention_pairs(prompt))
        decode = Step(decode_seqs=batch, context_tokens=batch * (prompt + output // 2))
        samples.append(Sample(prefill, float(row["prompt_time"]) * _MS))
        samples.append(Sample(decode, float(row["token_time"]) * _MS))
    return samples


@dataclass(frozen=True, slots=True)
class LayerTables:
    """Kernel times of one decoder layer and of what stands around the layers; s."""

    once: Callable[[float], float]  # tokens -> s of all that does not look at the context, in all layers
    heads: Callable[[float], float]  # sequences that get a token -> s of the output layer and the sampler
    attention: tuple[tuple[int, int, int, int, float], ...]  # prompt tokens, behind, sequences, context of each, s
    layers: int

    def samples(self, *, overhead_s: float, longest_context: int) -> list[Sample]:
        """Return a step, `overhead_s` above its kernels, for each row of the attention table up to the context."""
        samples = []
        for tokens, cached, seqs, context, layer_s in self.attention:
            if context <= longest_context:
                prompts = 1 if tokens else 0
                step = Step(tokens, prompts, attention_pairs(tokens, cached), seqs, seqs * context)
                kernels_s = self.once(tokens + seqs) + self.heads(prompts + seqs) + self.layers * layer_s
                samples.append(Sample(step, kernels_s + overhead_s))
        return samples


def layer_tables(attention: Path, dense: Path, per_sequence: Path, *, layers: int) -> LayerTables:
    """Read a profile of LLMServingSim (profiler/perf/... of github.com/casys-kaist/LLMServingSim), in microseconds."""
    by_layer = _curves(dense, "tokens")
    by_head = _curves(per_sequence, "sequences")
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    rows = [[float(row[name]) for name in names] for row in read_rows(attention, names)]

    def once(tokens: float) -> float:
        times = {name: _at(curve, tokens) for name, curve in by_layer.items()}
        in_layers = sum(count * times.pop(name) for name, count in _IN_EACH_LAYER.items())
        return (layers * in_layers + sum(times.values())) * _US

    return LayerTables(
        once=once,
        heads=lambda sequences: sum(_at(curve, sequences) for curve in by_head.values()) * _US,
        attention=tuple((int(n), int(kv), int(b), int(ctx), us * _US) for n, kv, b, ctx, us in rows),
        layers=layers,
    )


def transfer_points(path: Path, *, devices_per_node: int) -> list[tuple[float, float]]:
    """Read send_recv.csv of github.com/microsoft/vidur: (bytes, s); two devices per node talk inside it, one across."""
    columns = ("bytes", "devices_per_node", "send_recv_ms")
    rows = list(read_rows(path, columns))
    return [
        (float(row["bytes"]), float(row["send_recv_ms"]) * _MS)
        for row in rows
        if int(row["devices_per_node"]) == devices_per_node
    ]


def _curves(path: Path, x: str) -> dict[str, tuple[Floats, Floats]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(path, ("layer", x, "time_us")):
        points.setdefault(row["layer"], []).append((float(row[x]), float(row["time_us"])))
    return {name: _sorted_columns(pairs) for name, pairs in points.items()}


def _sorted_columns(pairs: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    columns = np.array(sorted(pairs)).T
    return columns[0], columns[1]


def _at(curve: tuple[Floats, Floats], x: float) -> float:
    """Interpolate; go straight on past the last point."""
    at, value = curve
    if x <= at[-1] or len(at) == 1:
        return float(np.interp(x, at, value))
    return float(value[-1] + (x - at[-1]) * (value[-1] - value[-2]) / (at[-1] - at[-2]))
