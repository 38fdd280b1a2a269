"""A sweep: many benchmarks from one YAML file.

Owns the file's form. Its keys are the flags of `baton bench` without dashes, so that there is one list of them.

    base:                       # flags that all runs share
      url: http://127.0.0.1:8000
      dataset-name: random
    sweep:                      # every combination of these
      random-input-len: [128, 1024]
      max-concurrency: [1, 8, 32]
    runs:                       # and of each of these, which may start a system of its own
      - {label: one decode, config: my.yaml, set: [pools.decode.replicas=1]}
      - {label: two decode, config: my.yaml, set: [pools.decode.replicas=2], request-rate: 4}
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from core.errors import ConfigError, reason_of

Scalar: TypeAlias = str | int | float | bool
Value: TypeAlias = "Scalar | Sequence[Scalar]"
_SECTIONS: Final = ("base", "sweep", "runs")


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One benchmark of a sweep."""

    words: tuple[str, ...]  # flags
    varied: Mapping[str, Value]  # what sets it apart


def read_sweep(path: Path) -> tuple[SweepRun, ...]:
    """Read the runs, in the order of the file. Raises ConfigError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: cannot be read: {reason_of(exc)}") from exc
    if not isinstance(found, dict) or not set(found) <= set(_SECTIONS):
        raise ConfigError(f"{path}: a sweep has the sections {', '.join(_SECTIONS)}")
    base = _flags(found.get("base") or {}, path, "base")
    varied = _flags(found.get("sweep") or {}, path, "sweep")
    runs = [_flags(run, path, "runs") for run in found.get("runs") or [{}]]
    lists = [value if isinstance(value, list) else [value] for value in varied.values()]
    return tuple(
        _run(base, {**run, **dict(zip(varied, combination, strict=True))})
        for run in runs
        for combination in itertools.product(*lists)
    )


def _run(base: Mapping[str, Value], varied: Mapping[str, Value]) -> SweepRun:
    words: list[str] = []
    for name, value in {**base, **varied}.items():
        if value is True or value is False:
            words.append(f"--{'' if value else 'no-'}{name}")
        elif name == "set":
            words += [part for each in _listed(value) for part in ("--set", str(each))]
        else:
            words += [f"--{name}", *map(str, _listed(value))]
    return SweepRun(tuple(words), varied)


def _listed(value: Value) -> Sequence[Scalar]:
    return value if isinstance(value, (list, tuple)) else [value]  # type: ignore[list-item]


def _flags(value: object, path: Path, section: str) -> dict[str, Value]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{path}: {section} holds no flags; write NAME: VALUE, names as in `baton bench --help`")
    return value
