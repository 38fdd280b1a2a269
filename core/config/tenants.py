"""The tenants file: who may ask, with which keys, for which classes and how much.

Owns the form of that file, and that every problem of it is told at once. Only hashes of keys stand in it, and no
message repeats what stands where a key or its hash belongs. Must not know HTTP, nor decide about requests.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Final

from pydantic import Field, ValidationError

from core.config.diagnosis import diagnose
from core.config.models import Name, Section
from core.config.problems import ConfigErrors, ConfigProblem, by_place
from core.config.schema import schema_of
from core.config.tree import ConfigTree, Path, dotted
from core.config.yaml_file import read_yaml_file

KEY_PREFIX: Final = "baton-"
_HASH: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_REMEDY: Final = "`baton keys new TENANT` makes a key and the line for this file"


class TenantConfig(Section):
    """One tenant."""

    keys: tuple[str, ...] = Field(min_length=1, description="SHA-256 of each of its API keys, in hexadecimal")
    weight: float = Field(default=1, gt=0, le=1_000_000, description="its share of the service, beside the others'")
    requests_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="requests it may send in a minute; null: any number"
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000_000,
        description="tokens of prompt and output it may use in a minute; null: any number",
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, le=1 << 20, description="requests it may have in flight; null: any number"
    )
    classes: tuple[Name, ...] | None = Field(
        default=None, min_length=1, description="SLO classes it may ask for, the usual one first; null: all"
    )


class TenantsConfig(Section):
    """The whole file."""

    tenants: dict[Name, TenantConfig] = Field(min_length=1, description="the tenants, by name")


def digest_of(key: str) -> bytes:
    """Hash a key as the tenants file holds it; keys are random, so that a fast hash is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_tenants(path: FilePath, *, slo_classes: Collection[str] = ()) -> TenantsConfig:
    """Read a tenants file whose classes are among `slo_classes`, if any are given.

    Raises ConfigErrors with every problem found.
    """
    config, problems = examine_tenants(path, slo_classes=slo_classes)
    if config is None or problems:
        raise ConfigErrors(problems)
    return config


def examine_tenants(
    path: FilePath, *, slo_classes: Collection[str] = ()
) -> tuple[TenantsConfig | None, list[ConfigProblem]]:
    """Read a tenants file; return it if it has the right form, and every problem of it."""
    tree, problems = read_yaml_file(path, sections="tenants", empty="remove router.tenants, or name a tenant")
    if any(not problem.path and not tree.root for problem in problems):
        return None, problems
    config: TenantsConfig | None = None
    try:
        config = TenantsConfig.model_validate_json(json.dumps(tree.root), strict=True)
    except ValidationError as exc:
        broken = [problem.path for problem in problems]
        problems += diagnose(exc, tree, schema_of(TenantsConfig), broken=broken)
    problems += _keys_are_hashes(tree)
    problems += _classes_exist(tree, slo_classes)
    return config, sorted(map(_without_secrets, problems), key=by_place)


def _keys_are_hashes(tree: ConfigTree) -> Iterator[ConfigProblem]:
    """Check each key by itself, and that it opens one door only."""
    owners: dict[str, Path] = {}
    for name in tree.keys(("tenants",)):
        _, keys = tree.get(("tenants", name, "keys"))
        for index, value in enumerate(keys if isinstance(keys, list) else ()):
            path: Path = ("tenants", name, "keys", index)
            if not isinstance(value, str):
                continue
            if not _HASH.match(value):
                message = (
                    "is a key itself" if value.startswith(KEY_PREFIX) else "is no SHA-256 of 64 hexadecimal digits"
                )
                yield ConfigProblem(dotted(path), message, tree.source_of(path), suggestion=_REMEDY)
            elif value.lower() in owners:
                message = f"is {dotted(owners[value.lower()])} too: a key belongs to one tenant"
                yield ConfigProblem(dotted(path), message, tree.source_of(path), suggestion=_REMEDY)
            owners.setdefault(value.lower(), path)


def _classes_exist(tree: ConfigTree, known: Collection[str]) -> Iterator[ConfigProblem]:
    for name in tree.keys(("tenants",)):
        _, classes = tree.get(("tenants", name, "classes"))
        for index, wanted in enumerate(classes if known and isinstance(classes, list) else ()):
            if isinstance(wanted, str) and wanted not in known:
                path: Path = ("tenants", name, "classes", index)
                near = difflib.get_close_matches(wanted, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else "name one of " + ", ".join(known)
                yield ConfigProblem(
                    dotted(path), "is not one of slo.classes", tree.source_of(path), wanted, suggestion=remedy
                )


def _without_secrets(problem: ConfigProblem) -> ConfigProblem:
    """Keep only values of keys that hold no secret: a misspelt `keys` holds one too."""
    last = re.sub(r"\[\d+\]$", "", problem.path).rpartition(".")[2]
    is_open = last != "keys" and last in TenantConfig.model_fields
    return problem if is_open else replace(problem, value=None)
