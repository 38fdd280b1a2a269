"""The configuration tree as a description of itself: which keys exist, and what may stand in each.

Owns the reading of core.config.models for error messages and for the reference page. Must not validate anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias, cast

from core.config.models import BatonConfig, Section
from core.config.tree import Path, Value
from core.config.units import unit_of
from core.config.yaml_text import write_value

_JsonSchema: TypeAlias = Mapping[str, Value]
Kind: TypeAlias = Literal["section", "map", "list", "leaf"]


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What may stand at one key. A section has `fields`; a map or a list has one `item` for all of its values."""

    name: str
    kind: Kind
    allowed: str  # type and range in words
    description: str = ""
    required: bool = False
    default: str | None = None  # as YAML flow text; None for sections and required keys
    choices: tuple[str, ...] = ()  # all and only the texts allowed, if they are listed
    minimum: float | None = None
    maximum: float | None = None
    fields: tuple[KeySpec, ...] = ()
    item: KeySpec | None = None

    def field(self, name: str) -> KeySpec | None:
        """Look a key of this section up."""
        return next((spec for spec in self.fields if spec.name == name), None)


@cache  # pydantic takes 40 ms of CPU for it, half of what a configuration takes to load
def config_schema() -> KeySpec:
    """Describe the whole tree."""
    return schema_of(BatonConfig, defaults=BatonConfig().model_dump(mode="json"))


def schema_of(root: type[Section], *, defaults: Value = None) -> KeySpec:
    """Describe the tree below any section; `defaults` are its values where nothing is set."""
    schema = cast("_JsonSchema", root.model_json_schema())
    definitions = cast("Mapping[str, _JsonSchema]", schema["$defs"])
    return _Describer(definitions).describe("", schema, required=False, default=defaults)


def find(root: KeySpec, path: Path) -> KeySpec | None:
    """Look up what may stand at a concrete path, e.g. `("slo", "classes", "chat", "ttft_ms")`."""
    spec: KeySpec | None = root
    for part in path:
        if spec is None:
            return None
        spec = spec.item if spec.kind in ("map", "list") else spec.field(str(part))
    return spec


def leaf_paths(root: KeySpec, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List the paths of all keys that are no sections, in order; `<name>` stands for a key of a map."""
    paths: list[tuple[str, ...]] = []
    for spec in root.fields:
        here = (*prefix, spec.name)
        if spec.kind == "section":
            paths += leaf_paths(spec, here)
            continue
        paths.append(here)
        if spec.item is not None and spec.item.kind == "section":
            paths += leaf_paths(spec.item, (*here, spec.item.name))
    return paths


class _Describer:
    """Walks a JSON schema as pydantic writes it."""

    def __init__(self, definitions: Mapping[str, _JsonSchema]) -> None:
        self._definitions = definitions

    def describe(self, name: str, schema: _JsonSchema, *, required: bool, default: Value = None) -> KeySpec:
        """Describe the key `name`; `default` is its value in a configuration that sets nothing."""
        description = str(schema.get("description", ""))
        body = self._resolve(schema)
        if "properties" in body:
            return self._section(name, body, description, required, default)
        if "oneOf" in body:
            return self._section_or_word(name, body, description, required, default)
        text = None if required else write_value(default)
        item = self._item(body)
        if item is not None and body.get("type") == "array":
            return KeySpec(name, "list", "list", description, required, text, item=item)
        if item is not None:
            inner = f"each {item.allowed}" if item.kind == "leaf" else "each with keys of its own"
            return KeySpec(name, "map", f"names, {inner}", description, required, text, item=item)
        branch = _value_branch(body)
        return KeySpec(
            name,
            "leaf",
            self._allowed(name, body),
            description,
            required,
            text,
            choices=tuple(str(choice) for choice in cast("list[str]", branch.get("enum", []))),
            minimum=_bound(branch, "minimum", "exclusiveMinimum"),
            maximum=_bound(branch, "maximum", "exclusiveMaximum"),
        )

    def _section(self, name: str, body: _JsonSchema, description: str, required: bool, defaults: Value) -> KeySpec:
        needed = cast("list[str]", body.get("required", []))
        properties = cast("Mapping[str, _JsonSchema]", body["properties"])
        known = defaults if isinstance(defaults, dict) else {}
        fields = tuple(
            self.describe(key, value, required=key in needed, default=known.get(key, value.get("default")))
            for key, value in properties.items()
        )
        keys = ", ".join(properties)
        return KeySpec(name, "section", f"section with the keys {keys}", description, required, fields=fields)

    def _section_or_word(
        self, name: str, body: _JsonSchema, description: str, required: bool, defaults: Value
    ) -> KeySpec:
        """Describe a section in whose place one of a few words may stand."""
        branches = [self._resolve(branch) for branch in cast("list[_JsonSchema]", body["oneOf"])]
        inner = next(branch for branch in branches if "properties" in branch)
        words = tuple(str(branch["const"]) for branch in branches if "const" in branch)
        section = self._section(name, inner, description, required, defaults)
        return replace(section, allowed=", or ".join((section.allowed, *words)), choices=words)

    def _item(self, body: _JsonSchema) -> KeySpec | None:
        """Describe the values of a map or a list; None for anything else."""
        if body.get("type") == "array":
            return self.describe("<index>", cast("_JsonSchema", body["items"]), required=True)
        patterns = cast("Mapping[str, _JsonSchema]", body.get("patternProperties", {}))
        schemas = [*patterns.values(), body.get("additionalProperties")]
        schema = next((s for s in schemas if isinstance(s, dict)), None)
        return None if schema is None else self.describe("<name>", schema, required=True)

    def _resolve(self, schema: _JsonSchema) -> _JsonSchema:
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self._definitions[reference.removeprefix("#/$defs/")]
        return schema

    def _allowed(self, name: str, body: _JsonSchema) -> str:
        choices = body.get("anyOf")
        if isinstance(choices, list):
            words = [self._allowed(name, cast("_JsonSchema", choice)) for choice in choices]
            return ", or ".join(words)
        if "enum" in body:
            return "one of " + ", ".join(str(choice) for choice in cast("list[str]", body["enum"]))
        words_by_type = {"boolean": "true or false", "null": "null", "array": "list", "string": _text_words(body)}
        kind = str(body.get("type"))
        return words_by_type[kind] if kind in words_by_type else _number_words(name, kind, body)


def _value_branch(body: _JsonSchema) -> _JsonSchema:
    """Take the branch of an optional value that is not null."""
    branches = cast("list[_JsonSchema]", body.get("anyOf", [body]))
    return next((branch for branch in branches if branch.get("type") != "null"), body)


def _bound(body: _JsonSchema, *names: str) -> float | None:
    found = next((body[name] for name in names if name in body), None)
    return float(found) if isinstance(found, (int, float)) else None


def _text_words(body: _JsonSchema) -> str:
    if "pattern" in body:
        return "name of letters, digits, '_', '.' and '-', at most 64"
    return "text, not empty" if body.get("minLength") else "text"


def _number_words(name: str, kind: str, body: _JsonSchema) -> str:
    words = "whole number" if kind == "integer" else "number"
    if "multipleOf" in body:
        words += f" divisible by {body['multipleOf']}"
    if "minimum" in body and "maximum" in body:
        words += f" from {_plain(body['minimum'])} to {_plain(body['maximum'])}"
    elif "exclusiveMinimum" in body and "maximum" in body:
        words += f" above {_plain(body['exclusiveMinimum'])}, at most {_plain(body['maximum'])}"
    unit = unit_of(name)
    return words if unit is None else f"{words}, in {unit.words}"


def _plain(number: Value) -> str:
    """Write a bound without a needless `.0`."""
    return f"{number:.12g}" if isinstance(number, float) else str(number)
