"""Measured servings of the kernel-table project, read from its CSV: one mean TTFT and TPOT a row.

Owns the columns and how they are understood. Must not predict. What the columns do not say, and how we read it:
prompts and outputs of the public benchmark rows (lengths that are powers of two, precision named) are uniform from 0.8
to 1.0 of the nominal length; others are exact, but under vLLM, which puts prompts beside decoding sequences, requests
do not stay in step as equal lengths would make them, so theirs vary by 3 %; a vLLM step takes 2,048 tokens in the rows
that name no precision, else 8,192 (both are defaults of vLLM; the half of the rows that is fitted tells them apart);
dense fp8 models of the public rows keep their cache in fp8 under vLLM (else it would not have held what ran); a tensor
size beyond a node of an aggregated serving is the product with the expert size; a missing concurrency is the batch size
of one decode worker.

Rows of separate prefill and decode workers that do not say how many there are count as undetermined: the recipes of the
public benchmark they come from range from one to nine decode workers for one load, some with speculative decoding.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from bench.known_models import known_model
from core.errors import ConfigError

_NODE_DEVICES = 8
_BENCHMARK_LENGTHS = frozenset({1024, 8192})
_BENCHMARK_SHORTEST = 0.8
_STAGGERED_SHORTEST = 0.97
_STEP_TOKENS, _SMALL_STEP_TOKENS = 8192, 2048
# Bytes of a weight; microscaled 4-bit formats add a scale for each 16 or 32 values.
_WEIGHT_BYTES = {"fp8": 1.0, "fp4": 0.53, "int4": 0.53}


@dataclass(frozen=True, slots=True)
class Worker:
    """The parallel sizes of one worker."""

    tensor_parallel: int
    expert_devices: int


@dataclass(frozen=True, slots=True)
class Point:
    """One measured serving."""

    model: str  # of bench.known_models, so that renamed twins are one
    routed: bool  # has experts
    device: str  # "h100-sxm"
    backend: str
    weight_bytes: float
    kv_value_bytes: float
    prefill: Worker
    decode: Worker
    separate: bool  # prefill on workers of its own
    prompt_tokens: int
    output_tokens: int
    shortest: float  # the shortest lengths as a share of the nominal ones
    step_tokens: int  # at most in one step: max_num_batched_tokens of vLLM, chunked_prefill_size of SGLang
    concurrency: int  # for each decode worker
    prefill_share: float  # prefill workers for each decode worker
    ttft_s: float
    tpot_s: float

    @property
    def group(self) -> str:
        """Name what shares an engine and a model, and so a calibration."""
        return f"{self.model}/{self.backend}/{'P/D' if self.separate else 'one pool'}"

    @property
    def kind(self) -> str:
        """Name what engines treat alike, so that unknown models of a kind have a calibration."""
        routed = "routed" if self.routed else "dense"
        return f"{routed} models/{self.backend}/{'P/D' if self.separate else 'one pool'}"

    @property
    def configuration(self) -> str:
        """Name everything but the load's concurrency and what was measured."""
        sizes = (self.prefill, self.decode, self.prompt_tokens, self.output_tokens)
        return f"{self.group}/{self.device}/{self.weight_bytes}/{sizes}"


def split(points: list[Point], *, by_serving: bool = False) -> tuple[list[Point], list[Point]]:
    """Part the points into those to fit and those to report on: every other configuration of each group.

    The configurations of a group are ordered by a hash, so that the parts do not follow any size. `by_serving` parts
    single servings so: then a configuration's other concurrencies may be among those to fit.
    """

    def unit(point: Point) -> str:
        return f"{point.configuration}/{point.concurrency}" if by_serving else point.configuration

    sides: dict[str, int] = {}
    for group in sorted({point.group for point in points}):
        names = {unit(point) for point in points if point.group == group}
        for i, name in enumerate(sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())):
            sides[name] = i % 2
    parts: tuple[list[Point], list[Point]] = ([], [])
    for point in points:
        parts[sides[unit(point)]].append(point)
    return parts


def read_points(path: Path) -> tuple[list[Point], int]:
    """Read the distinct points, and how many rows are undetermined: unknown models or numbers of workers.

    Raises ConfigError for an unreadable file.
    """
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the measured servings in {path}: {exc}") from exc
    if not rows or "silicon_tpot_ms" not in rows[0]:
        raise ConfigError(f"{path} has no column silicon_tpot_ms; it should be the silicon sample of the kernel tables")
    found: dict[Point, Point] = {}
    undetermined = 0
    for row in rows:
        point = _point(row)
        if point is None:
            undetermined += 1
        else:
            found.setdefault(_rounded(point), point)
    return list(found.values()), undetermined


def _rounded(point: Point) -> Point:
    """Return what a repeated row shares with the first: its figures differ in the last digits at most."""
    return replace(point, ttft_s=round(point.ttft_s, 4), tpot_s=round(point.tpot_s, 5))


def _number(row: dict[str, str], column: str, default: float) -> float:
    text = row.get(column) or ""
    return float(text) if text and text != "nan" else default


def _worker(row: dict[str, str], role: str) -> Worker:
    tensor = int(_number(row, f"{role}tp_size", 1))
    expert_tensor = max(1, int(_number(row, f"{role}moe_tp_size", 1)))
    expert = max(1, int(_number(row, f"{role}moe_ep_size", 1)))
    if not role and tensor > _NODE_DEVICES:
        tensor //= expert
    data = _number(row, f"{role}attention_dp_size", 0)
    # Only servings that leave the data-parallel size empty give it through the experts' own sizes.
    shared = max(tensor, min(expert_tensor * expert, _NODE_DEVICES)) if data == 0 else tensor
    if role and data > 1:
        shared = tensor * int(data)
    return Worker(tensor, shared)


def _point(row: dict[str, str]) -> Point | None:
    shape = known_model(row["model_path"])
    separate = row["mode"] == "disagg"
    if shape is None or (separate and not row["decode_num_workers"]):
        return None
    prompt, output = int(row["isl"]), int(row["osl"])
    decoders = max(1.0, _number(row, "decode_num_workers", 1))
    batch = _number(row, "decode_batch_size" if separate else "batch_size", 1)
    known_benchmark = bool(row["precision"]) and {prompt, output} <= _BENCHMARK_LENGTHS
    fp8_cache = known_benchmark and row["precision"] == "fp8" and row["backend"] == "vllm" and shape.experts is None
    concurrency = _number(row, "concurrency", 0) / decoders or batch
    return Point(
        model=shape.name,
        routed=shape.experts is not None,
        device=row["system"].replace("_", "-"),
        backend=row["backend"],
        weight_bytes=_WEIGHT_BYTES.get(row["precision"], 2.0),
        kv_value_bytes=1.0 if fp8_cache else 2.0,
        prefill=_worker(row, "prefill_" if separate else ""),
        decode=_worker(row, "decode_" if separate else ""),
        separate=separate,
        prompt_tokens=prompt,
        output_tokens=output,
        shortest=_BENCHMARK_SHORTEST if known_benchmark else _STAGGERED_SHORTEST if row["backend"] == "vllm" else 1.0,
        step_tokens=_STEP_TOKENS if row["precision"] or row["backend"] != "vllm" else _SMALL_STEP_TOKENS,
        concurrency=max(1, round(concurrency)),
        prefill_share=_number(row, "prefill_num_workers", 1) / decoders,
        ttft_s=float(row["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(row["silicon_tpot_ms"]) / 1e3,
    )
