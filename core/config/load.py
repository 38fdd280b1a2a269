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
from core.config.problems import ConfigErrors, ConfigProblem
from core.config.schema import config_schema
from core.config.tree import ConfigTree
from core.config.yaml_text import read_yaml

_MAX_FILE_BYTES = 1 << 20  # a configuration is a few KiB; anything larger is another file


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
    tree, problems = _read_file(path) if path is not None else (ConfigTree(), [])
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
        raise ConfigErrors(sorted(problems, key=_by_place))
    return LoadedConfig(config, tree)


def _read_file(path: Path) -> tuple[ConfigTree, list[ConfigProblem]]:
    file = str(path)
    try:
        if path.is_dir():
            return ConfigTree(), [ConfigProblem("", "is a folder, not a YAML file", file)]
        if path.stat().st_size > _MAX_FILE_BYTES:
            message = f"is larger than {_MAX_FILE_BYTES >> 20} MiB, so it is no configuration"
            return ConfigTree(), [ConfigProblem("", message, file)]
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ConfigTree(), [ConfigProblem("", "there is no such file", file)]
    except UnicodeDecodeError as exc:
        return ConfigTree(), [ConfigProblem("", f"is not UTF-8 text: {exc.reason} at byte {exc.start}", file)]
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        return ConfigTree(), [ConfigProblem("", f"cannot be read: {reason}", file)]
    return read_yaml(text, file=file)


def _by_place(problem: ConfigProblem) -> tuple[int, str, int]:
    """Order problems as a reader meets them: lines of the file, then variables, then flags."""
    file, colon, line = problem.source.rpartition(":")
    if colon and line.isdigit() and not problem.source.startswith("--set"):
        return 0, file, int(line)
    rank = 2 if problem.source.startswith("BATON_") else 3 if problem.source.startswith("--set") else 1
    return rank, "", 0
