"""A profile: what is known of one model on one kind of device, for each parallel size, with its own error.

Owns the value and its file format, JSON with tables as [knot, value] pairs in seconds, strict as the configuration is:
an unknown key is an error. Must not know how profiles are measured (bench.profile) or derived
(core.latency.device).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from core.errors import ConfigError
from core.latency.step import StepCost, Table

FORMAT = "baton-profile/1"


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """One worker of a given tensor and pipeline size."""

    tensor_parallel: int
    pipeline_parallel: int
    cost: StepCost  # of the whole model: with pipeline stages, the sum over the stages
    kv_capacity_tokens: int
    prefill_error: float  # standard deviation of the relative error of prefill steps, on rows kept out of the fit
    decode_error: float  # the same of decode steps

    @property
    def gpus(self) -> int:
        """How many devices one such worker takes."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One model in one engine on one kind of device."""

    model: str
    device: str  # "h100-sxm-80gb", "cpu-2-cores"
    engine: str  # "vllm 0.24.0"
    source: str  # where the figures come from, for people
    shapes: tuple[ShapeProfile, ...]  # no two of one size, ordered by (tensor, pipeline)
    kv_bytes_per_token: int
    block_size: int = 16  # tokens
    max_model_len: int | None = None  # tokens
    request_overhead_s: float = 0.0  # time to first token beyond queue and steps: HTTP, tokenising, first frame
    handover_overhead_s: float = 0.0  # what a handed-over request adds to that, transfer of the bytes aside

    def shape(self, tensor_parallel: int, pipeline_parallel: int = 1) -> ShapeProfile:
        """Find a parallel size. Raises ConfigError that lists the sizes there are."""
        for shape in self.shapes:
            if (shape.tensor_parallel, shape.pipeline_parallel) == (tensor_parallel, pipeline_parallel):
                return shape
        known = ", ".join(f"tp{s.tensor_parallel} pp{s.pipeline_parallel}" for s in self.shapes)
        wanted = f"tp{tensor_parallel} pp{pipeline_parallel}"
        raise ConfigError(f"the profile of {self.model} on {self.device} has no {wanted}; it has {known}")


def read_profile(path: Path) -> EngineProfile:
    """Read a profile file. Raises ConfigError that names the file, each wrong field and what to do."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: the profile cannot be read ({error.strerror}); name an existing file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: this is not UTF-8 text, so not a profile; {_REMEDY}") from error
    return profile_from_json(text, name=str(path))


def profile_from_json(text: str, *, name: str = "profile") -> EngineProfile:
    """Make the profile of a file's text. Raises ConfigError that starts with `name` and lists every wrong field."""
    try:
        return _ProfileText.model_validate_json(text).profile()
    except ValidationError as error:
        raise ConfigError(f"{name}: {'; '.join(_problems(error))}; {_REMEDY}") from error


def profile_to_json(profile: EngineProfile) -> str:
    """Write the profile as text that profile_from_json reads back unchanged; one line for each value of a size."""
    head = {"format": FORMAT} | {f.name: getattr(profile, f.name) for f in fields(profile) if f.name != "shapes"}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    shapes = ",\n".join(_shape_text(shape) for shape in profile.shapes)
    return "{\n" + ",\n".join([*lines, f'  "shapes": [\n{shapes}\n  ]']) + "\n}\n"


def rounded(profile: EngineProfile, *, digits: int = 7) -> EngineProfile:
    """Round every table to so many significant digits, for files that people read."""
    shapes = tuple(
        replace(
            shape,
            cost=_rounded_cost(shape.cost, digits),
            prefill_error=_round(shape.prefill_error, 3),
            decode_error=_round(shape.decode_error, 3),
        )
        for shape in profile.shapes
    )
    return replace(profile, shapes=shapes)


def _rounded_cost(cost: StepCost, digits: int) -> StepCost:
    def table(values: Table) -> Table:
        return Table(values.at, tuple(_round(value, digits) for value in values.value))

    return StepCost(
        dense=table(cost.dense),
        pair=table(cost.pair),
        decode_fixed=table(cost.decode_fixed),
        decode_context=table(cost.decode_context),
        prefill_seq_s=_round(cost.prefill_seq_s, digits),
        mixed_context=table(cost.mixed_context) if cost.mixed_context else None,
    )


def _round(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


_REMEDY = "`python baton.py profile` writes such files"


def _shape_text(shape: ShapeProfile) -> str:
    outer = {f.name: getattr(shape, f.name) for f in fields(shape) if f.name != "cost"}
    lines = [f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in outer.items()]
    inner = ",\n".join(f"        {json.dumps(key)}: {json.dumps(value)}" for key, value in _cost_values(shape.cost))
    return "    {\n" + ",\n".join([*lines, '      "cost": {\n' + inner + "\n      }"]) + "\n    }"


def _cost_values(cost: StepCost) -> Iterator[tuple[str, float | list[tuple[float, float]]]]:
    for field in fields(cost):
        value = getattr(cost, field.name)
        if isinstance(value, Table):
            yield field.name, list(zip(value.at, value.value, strict=True))
        elif value is not None:
            yield field.name, value


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in detail["loc"])
        said = "unknown key; remove it" if detail["type"] == "extra_forbidden" else detail["msg"]
        problems.append(f"{where}: {said}" if where else said)
    return problems


def _knots_rise(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if any(b[0] <= a[0] for a, b in pairwise(pairs)):
        raise ValueError("the knots, the first of each pair, must rise")
    return pairs


_TableText = Annotated[
    list[tuple[NonNegativeFloat, NonNegativeFloat]], Field(min_length=1), AfterValidator(_knots_rise)
]


class _Text(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _CostText(_Text):
    dense: _TableText
    pair: _TableText
    decode_fixed: _TableText
    decode_context: _TableText
    prefill_seq_s: NonNegativeFloat = 0.0
    mixed_context: _TableText | None = None

    def cost(self) -> StepCost:
        return StepCost(
            dense=_table(self.dense),
            pair=_table(self.pair),
            decode_fixed=_table(self.decode_fixed),
            decode_context=_table(self.decode_context),
            prefill_seq_s=self.prefill_seq_s,
            mixed_context=_table(self.mixed_context) if self.mixed_context else None,
        )


class _ShapeText(_Text):
    tensor_parallel: PositiveInt
    pipeline_parallel: PositiveInt = 1
    kv_capacity_tokens: PositiveInt
    prefill_error: NonNegativeFloat
    decode_error: NonNegativeFloat
    cost: _CostText

    def shape(self) -> ShapeProfile:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return ShapeProfile(**values | {"cost": self.cost.cost()})


def _shapes_in_order(shapes: list[_ShapeText]) -> list[_ShapeText]:
    sizes = [(s.tensor_parallel, s.pipeline_parallel) for s in shapes]
    if any(b <= a for a, b in pairwise(sizes)):
        raise ValueError("one entry for each size, in order of tensor_parallel, then pipeline_parallel")
    return shapes


class _ProfileText(_Text):
    format: Literal["baton-profile/1"]
    model: str
    device: str
    engine: str
    source: str
    kv_bytes_per_token: PositiveInt
    block_size: PositiveInt = 16
    max_model_len: PositiveInt | None = None
    request_overhead_s: NonNegativeFloat = 0.0
    handover_overhead_s: NonNegativeFloat = 0.0
    shapes: Annotated[list[_ShapeText], Field(min_length=1), AfterValidator(_shapes_in_order)]

    def profile(self) -> EngineProfile:
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "format"}
        return EngineProfile(**values | {"shapes": tuple(shape.shape() for shape in self.shapes)})


def _table(pairs: list[tuple[float, float]]) -> Table:
    return Table(tuple(at for at, _ in pairs), tuple(value for _, value in pairs))
