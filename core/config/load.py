"""The one way to a BatonConfig: defaults < YAML file < BATON_* variables < --set.

Owns the order of the layers and that every problem is reported in one pass. The environment is handed in, never read
from the process. Nothing here needs a GPU, Ray or vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from core.config.checks import check_across
from core.config.diagnosis import diagnose
from core.config.models import BatonConfig
from core.config.overlay import apply_environment, apply_overrides
from core.config.problems import ConfigErrors, by_place
from core.config.schema import config_schema
from core.config.tree import ConfigTree
from core.config.yaml_file import read_yaml_file


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, and where each value that is no default was given."""

    config: BatonConfig
    tree: ConfigTree


def load_config(path: Path | None, *, overrides: Sequence[str] = (), environ: Mapping[str, str]) -> BatonConfig:
    """Read, layer and check a configuration; without `path`, defaults take the place of the file.

    `overrides` are `key.path=value` texts. Raises ConfigErrors with every problem found.
    """
    return load_with_sources(path, overrides=overrides, environ=environ).config


def load_with_sources(path: Path | None, *, overrides: Sequence[str] = (), environ: Mapping[str, str]) -> LoadedConfig:
    """Do what `load_config` does, and keep the tree with its sources."""
    tree, problems = read_yaml_file(path) if path is not None else (ConfigTree(), [])
    if any(not problem.path and not tree.root for problem in problems):
        raise ConfigErrors(problems)
    schema = config_schema()
    problems += apply_environment(tree, environ, schema)
    problems += apply_overrides(tree, overrides)
    config: BatonConfig | None = None
    try:
        config = BatonConfig.model_validate_json(json.dumps(tree.root), strict=True)
    except ValidationError as exc:
        broken = [problem.path for problem in problems]
        problems += diagnose(exc, tree, schema, broken=broken)
    problems += check_across(tree)
    if problems or config is None:
        raise ConfigErrors(sorted(problems, key=by_place))
    return LoadedConfig(config, tree)
