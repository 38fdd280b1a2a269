"""What a configuration says at a key, or would say by default, before it is typed.

Owns the look-up of effective values in a tree that may be wrong. Must not judge them.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.config.problems import ConfigProblem
from core.config.tree import ConfigTree, Path, Value, dotted

POOLS = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Settings:
    """Reads effective values from a tree that may be wrong; None where there is no value of the type asked for."""

    tree: ConfigTree
    defaults: dict[str, Value]

    def value(self, path: Path) -> Value:
        """Look up what was given at `path`, else the default."""
        given, value = self.tree.get(path)
        if given:
            return value
        node: Value = self.defaults
        for part in path:
            node = node.get(part) if isinstance(node, dict) and isinstance(part, str) else None
        return node

    def integer(self, path: Path) -> int | None:
        """Look a positive whole number up."""
        value = self.value(path)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def text(self, path: Path) -> str | None:
        """Look a text up."""
        value = self.value(path)
        return value if isinstance(value, str) else None

    def mapping(self, path: Path) -> dict[str, Value]:
        """Look a mapping up; empty if there is none."""
        value = self.value(path)
        return value if isinstance(value, dict) else {}

    def pools(self) -> tuple[str, ...]:
        """Name the pools that have workers; what a pool without any says else is never used."""
        return tuple(pool for pool in POOLS if self.value(("pools", pool, "replicas")) != 0)

    def problem(self, path: Path, message: str, suggestion: str | None = None) -> ConfigProblem:
        """Report the value at `path`, which must exist as a plain value."""
        return ConfigProblem(
            dotted(path), message, self.tree.source_of(path), str(self.value(path)), suggestion=suggestion
        )
