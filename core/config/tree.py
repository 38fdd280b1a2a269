"""The configuration before it is typed: plain values, and where each of them came from.

Owns the mutable tree that file, environment and flags are laid into, in that order. Must not know the schema.
"""

from __future__ import annotations

from typing import TypeAlias

# What YAML and JSON have in common.
Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
Path: TypeAlias = tuple[str | int, ...]


def dotted(path: Path) -> str:
    """Write a path as people do: `model.lora[0].name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class ConfigTree:
    """A root mapping, and the source of all and only the paths that were given explicitly."""

    def __init__(self, default_source: str = "default") -> None:
        self.root: dict[str, Value] = {}
        self.sources: dict[Path, str] = {}
        self._default_source = default_source

    def get(self, path: Path) -> tuple[bool, Value]:
        """Look `path` up; the first item says whether it exists."""
        node: Value = self.root
        for part in path:
            if not isinstance(node, (dict, list)) or not _holds(node, part):
                return False, None
            node = self._child(node, part)
        return True, node

    def keys(self, path: Path) -> tuple[str, ...]:
        """List the keys of the mapping at `path`; empty if there is none."""
        _, node = self.get(path)
        return tuple(node) if isinstance(node, dict) else ()

    def set(self, path: Path, value: Value, source: str) -> None:
        """Put `value` at `path`; parents that are missing, or are no mapping, become mappings."""
        node: dict[str, Value] | list[Value] = self.root
        for depth, part in enumerate(path[:-1], start=1):
            child = self._child(node, part)
            if not isinstance(child, (dict, list)) or not _fits(child, path[depth]):
                child = {}
                self._store(node, part, child)
                self._forget(path[:depth])
                self.sources[path[:depth]] = source
            node = child
        self._store(node, path[-1], value)
        self._forget(path)
        self.sources[path] = source

    def source_of(self, path: Path) -> str:
        """Say where `path`, or else the nearest of its parents, was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.sources:
                return self.sources[path[:end]]
        return self._default_source

    def _forget(self, path: Path) -> None:
        for known in [p for p in self.sources if p[: len(path)] == path]:
            del self.sources[known]

    @staticmethod
    def _child(node: dict[str, Value] | list[Value], part: str | int) -> Value:
        if isinstance(node, dict):
            return node.get(str(part))
        return node[int(part)]

    @staticmethod
    def _store(node: dict[str, Value] | list[Value], part: str | int, value: Value) -> None:
        if isinstance(node, dict):
            node[str(part)] = value
        else:
            node[int(part)] = value


def _holds(container: dict[str, Value] | list[Value], part: str | int) -> bool:
    """Whether `container` has an item at `part`."""
    if isinstance(container, dict):
        return isinstance(part, str) and part in container
    return isinstance(part, int) and 0 <= part < len(container)


def _fits(container: dict[str, Value] | list[Value], part: str | int) -> bool:
    """Whether an item can be put at `part`: at any key of a mapping, at an existing index of a list."""
    if isinstance(container, dict):
        return isinstance(part, str)
    return _holds(container, part)
