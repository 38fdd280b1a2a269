"""From what pydantic refuses to what a person should write.

Owns the wording of every problem with a single key: unknown key, wrong type, wrong unit, value out of range. Must not
look at two keys at once: core.config.checks does.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from pydantic import ValidationError

from core.config.problems import ConfigProblem
from core.config.schema import KeySpec, find, leaf_paths
from core.config.tree import ConfigTree, Path, Value, dotted
from core.config.units import convert, convert_text, stem_of, unit_of, units_like
from core.config.yaml_text import read_value, write_value

_MAX_SHOWN = 60  # characters of a value in a message
_OUT_OF_RANGE = frozenset(
    {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of", "finite_number"}
)
_EMPTY = frozenset({"too_short", "string_too_short"})
_YES_AND_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def shown(value: Value) -> str:
    """Write a value for a message: YAML flow text, cut when long."""
    text = write_value(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def diagnose(
    refused: ValidationError, tree: ConfigTree, schema: KeySpec, *, broken: Iterable[str] = ()
) -> list[ConfigProblem]:
    """Turn pydantic's errors into problems, one for each key.

    `broken` names dotted paths that were reported already; that they are missing from the tree is no second problem.
    """
    problems: dict[Path, ConfigProblem] = {}
    missing: list[Path] = []
    explained: set[Path] = set()  # paths that an unknown key beside them was meant for
    reported = set(broken)
    for error in refused.errors(include_url=False):
        path = _path_of(error["loc"], tree, absent=error["type"] == "missing")
        if error["type"] == "missing":
            missing.append(path)
        elif error["type"] == "extra_forbidden":
            problem, meant = _unknown_key(path, tree, schema)
            problems[path] = problem
            explained |= {meant} if meant is not None else set()
        elif path not in problems:
            problems[path] = _bad_value(error["type"], path, tree, schema)
    for path in missing:
        if path not in explained and dotted(path) not in reported:
            spec = find(schema, path)
            allowed = spec.allowed if spec is not None else None
            problems[path] = ConfigProblem(dotted(path), "is required", tree.source_of(path), allowed=allowed)
    return list(problems.values())


def _path_of(location: Path, tree: ConfigTree, *, absent: bool) -> Path:
    """Leave out what pydantic adds to a location: branches of a union, `[key]`. An `absent` key keeps its name."""
    path: Path = ()
    for part in location:
        if tree.get((*path, part))[0]:
            path = (*path, part)
    return (*path, location[-1]) if absent else path


def _unknown_key(path: Path, tree: ConfigTree, schema: KeySpec) -> tuple[ConfigProblem, Path | None]:
    """Describe an unknown key; the second item is the path that was meant, if that is sure enough."""
    key = str(path[-1])
    section = find(schema, path[:-1])
    siblings = [spec.name for spec in section.fields] if section is not None else []
    _, value = tree.get(path)
    same_stem = [name for name in siblings if stem_of(name) == stem_of(key)]
    near = same_stem or difflib.get_close_matches(key, siblings, n=1)
    meant: Path | None = (*path[:-1], near[0]) if near else None
    suggestion: str | None
    if same_stem:
        suggestion = _unit_suggestion(key, same_stem[0], value)
    elif near:
        suggestion = f"did you mean {near[0]}?"
    else:
        suggestion = _elsewhere(key, schema)
    problem = ConfigProblem(
        dotted(path),
        "unknown key",
        tree.source_of(path),
        value=shown(value),
        allowed="the keys " + ", ".join(siblings) if siblings else None,
        suggestion=suggestion,
    )
    return problem, meant


def _unit_suggestion(key: str, meant: str, value: Value) -> str:
    """Say how to write under `meant` what was written under `key`, which differs only in its unit."""
    wanted, given = unit_of(meant), unit_of(key)
    if wanted is None:
        return f"did you mean {meant}?"
    number = None
    if isinstance(value, str):
        number = convert_text(value, wanted)
    elif given is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
        number = convert(value, given, wanted)
    if number is not None:
        return f"did you mean {meant}, in {wanted.words}? write {meant}: {number}"
    return f"did you mean {meant}, in {wanted.words}?"


def _elsewhere(key: str, schema: KeySpec) -> str | None:
    """Say where else in the tree a key of this name lives."""
    homes = [path for path in leaf_paths(schema) if path[-1] == key]
    return f"{key} belongs at " + " or ".join(".".join(path) for path in homes) if homes else None


def _bad_value(kind: str, path: Path, tree: ConfigTree, schema: KeySpec) -> ConfigProblem:
    _, value = tree.get(path)
    spec = find(schema, path)
    message, suggestion = "is not allowed here", None
    if kind in _OUT_OF_RANGE:
        message, suggestion = "is out of range", _range_suggestion(value, spec)
    elif kind in _EMPTY:
        message = "must not be empty"
    elif kind == "literal_error" and isinstance(value, str):
        near = difflib.get_close_matches(value, spec.choices if spec else (), n=1)
        message, suggestion = "is not one of the choices", f"did you mean {near[0]}?" if near else None
    elif kind == "string_pattern_mismatch":
        message = "is not a valid name"
    else:
        message, suggestion = f"is {_kind_of(value)}", _type_suggestion(kind, value, spec)
    allowed = spec.allowed if spec is not None else None
    if kind == "string_pattern_mismatch":
        allowed = "letters, digits, '_', '.' and '-', beginning with a letter or digit, at most 64"
    return ConfigProblem(dotted(path), message, tree.source_of(path), shown(value), allowed, suggestion)


def _kind_of(value: Value) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "a truth value"
    names = {int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return names[type(value)]


def _type_suggestion(kind: str, value: Value, spec: KeySpec | None) -> str | None:
    if spec is None:
        return None
    if value is None:
        return "remove the key, or put values under it" if spec.kind != "leaf" else "remove the key, or give a value"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return f'write it in quotes: "{write_value(value)}"'
    if not isinstance(value, str):
        return None
    return _text_suggestion(kind, value, spec)


def _text_suggestion(kind: str, value: str, spec: KeySpec) -> str | None:
    """Say what to write where text stands and something else is wanted."""
    if kind == "bool_type":
        word = _YES_AND_NO.get(value.lower(), value.lower())
        return f"write {word}" if word in ("true", "false") else None
    if kind not in ("int_type", "float_type"):
        return None
    unit = unit_of(spec.name)
    number = convert_text(value, unit) if unit is not None else None
    if number is not None:
        return f"the unit stands in the key: write {spec.name}: {number}"
    plain, _ = read_value(value, source="")
    return "write it without quotes" if isinstance(plain, (int, float)) else None


def _range_suggestion(value: Value, spec: KeySpec | None) -> str | None:
    """Guess that the number was meant in another unit, if it fits the range then."""
    if spec is None or isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    unit = unit_of(spec.name)
    if unit is None or spec.minimum is None or spec.maximum is None or value <= 0:
        return None
    for other in units_like(unit):
        number = convert(value, other, unit)
        if number is not None and spec.minimum <= float(number) <= spec.maximum:
            return f"if you mean {value:.12g} {other.words}, write {spec.name}: {number}"
    return None
