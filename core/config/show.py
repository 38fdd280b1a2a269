"""A configuration as YAML for people and for the next `baton up`, with the source of each value beside it.

Owns that format. What it writes loads back as the same configuration.
"""

from __future__ import annotations

from typing import cast

from core.config.load import LoadedConfig
from core.config.tree import ConfigTree, Path, Value
from core.config.yaml_text import write_value


def effective_values(loaded: LoadedConfig) -> dict[str, Value]:
    """List every key with its value, defaults included."""
    return cast("dict[str, Value]", loaded.config.model_dump(mode="json"))


def given_values(loaded: LoadedConfig) -> dict[str, Value]:
    """List the keys that file, environment or flags gave."""
    return loaded.tree.root


def to_yaml(values: dict[str, Value], tree: ConfigTree) -> str:
    """Write `values` as YAML; a value that `tree` holds is followed by its source as a comment."""
    return "\n".join(_lines(values, tree, ())) + "\n" if values else "{}\n"


def _lines(values: dict[str, Value], tree: ConfigTree, path: Path) -> list[str]:
    indent = "  " * len(path)
    lines: list[str] = []
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{write_value(key)}:")
            lines += _lines(value, tree, here)
            continue
        source = f"  # {_one_line(tree.source_of(here))}" if tree.get(here)[0] else ""
        lines.append(f"{indent}{write_value(key)}: {write_value(value)}{source}")
    return lines


def _one_line(source: str) -> str:
    """Keep a comment a comment, whatever a flag or a file name held."""
    return "".join(character if character.isprintable() else "?" for character in source)
