"""Coefficients in the form of DistServe's simulator, as an engine profile.

Owns the meaning of those files: simdistserve/estimators/time_estimator.py (coefficients, ms, pipeline stages) and
simdistserve/base/worker.py (overhead of an iteration) of github.com/LLMServe/DistServe. Must not know other sources.

A prefill takes a + b * tokens + c * sum(length^2), a decode step a + b * context + c * batch with other coefficients
from a batch threshold on. With `p` pipeline stages each takes 1/p of it, and p ms more in a prefill.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from core.errors import ConfigError
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table

_MS = 1e-3
# simdistserve's Worker.add_ray_overhead: once for each iteration, at the first stage; ms, and ms per token of context.
_OVERHEAD_MS, _OVERHEAD_PER_TOKEN_MS = 2.0, 1e-4
_FAR = 1000.0  # second knot of a straight table: far enough that rounded values keep the slope

_Line = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Coefficients(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prefill: _Line
    decoding_smallbs: _Line
    decoding_largebs: _Line
    decoding_large_small_bs_threshold: int = Field(gt=1)


_File = TypeAdapter(dict[str, dict[str, dict[str, _Coefficients]]])  # engine, model, tensor parallel size


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the coefficients do not say of a model."""

    name: str  # as in the coefficients
    kv_bytes_per_token: int
    max_model_len: int  # tokens


def distserve_profile(
    coefficients: str,
    capacities: str,
    model: ServedModel,
    *,
    engine: str = "distserve",
    device: str,
    source: str,
    iteration_overhead: bool = True,
) -> EngineProfile:
    """Make the profile of one model in one engine from the JSON of coefficients and the CSV of KV capacities.

    Every size with both coefficients and a capacity becomes a shape. The files state no error; it is left at 0.
    `iteration_overhead` adds simdistserve's 2 ms and 0.1 us per token to each iteration. Raises ConfigError.
    """
    fits = _fits(coefficients, engine, model.name)
    shapes = [
        ShapeProfile(
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            cost=_cost(fits[str(tensor)], pipeline, iteration_overhead=iteration_overhead),
            kv_capacity_tokens=tokens,
            prefill_error=0.0,
            decode_error=0.0,
        )
        for (tensor, pipeline), tokens in sorted(_capacities(capacities, model.name).items())
        if str(tensor) in fits
    ]
    if not shapes:
        raise ConfigError(f"no KV capacity is given for a parallel size of {model.name} that has coefficients")
    return EngineProfile(
        model=model.name,
        device=device,
        engine=engine,
        source=source,
        shapes=tuple(shapes),
        kv_bytes_per_token=model.kv_bytes_per_token,
        max_model_len=model.max_model_len,
    )


def _fits(text: str, engine: str, model: str) -> dict[str, _Coefficients]:
    try:
        engines = _File.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the coefficients are not in DistServe's form: {where}: {first['msg']}") from error
    if engine not in engines:
        raise ConfigError(f"the coefficients have no engine {engine!r}; they have {', '.join(engines)}")
    if model not in engines[engine]:
        raise ConfigError(
            f"the coefficients of {engine} have no model {model!r}; they have {', '.join(engines[engine])}"
        )
    return engines[engine][model]


def _capacities(text: str, model: str) -> dict[tuple[int, int], int]:
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
        return {(int(r["tp"]), int(r["pp"])): int(r["max_num_tokens"]) for r in rows if r["model"] == model}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the KV capacities need the columns model, tp, pp, max_num_tokens, all numbers whole ({error})"
        ) from error


def _cost(fit: _Coefficients, stages: int, *, iteration_overhead: bool) -> StepCost:
    """Return the time of all stages together."""
    fixed_ms, per_token_ms = (_OVERHEAD_MS, _OVERHEAD_PER_TOKEN_MS) if iteration_overhead else (0.0, 0.0)
    a, b, c = fit.prefill
    small, large, threshold = fit.decoding_smallbs, fit.decoding_largebs, float(fit.decoding_large_small_bs_threshold)
    # A table is flat before its first knot and straight on after its last: hence a batch of one and one past the jump.
    batches = sorted({1.0, threshold - 1.0, threshold, threshold + 1.0})
    lines = [small if batch < threshold else large for batch in batches]
    return StepCost(
        dense=_straight(a + stages * stages + fixed_ms, b + per_token_ms),
        pair=Table.constant(2.0 * c * _MS),  # a prompt of n tokens has n^2 / 2 pairs
        decode_fixed=Table(
            tuple(batches),
            # The overhead counts the context without the token that is being computed, the coefficients with it.
            tuple(
                (line[0] + fixed_ms + (line[2] - per_token_ms) * batch) * _MS
                for batch, line in zip(batches, lines, strict=True)
            ),
        ),
        decode_context=Table(tuple(batches), tuple((line[1] + per_token_ms) * _MS for line in lines)),
    )


def _straight(intercept_ms: float, slope_ms: float) -> Table:
    return Table((0.0, _FAR), (intercept_ms * _MS, (intercept_ms + slope_ms * _FAR) * _MS))
