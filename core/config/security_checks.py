"""What the section `security` names must be complete, exist and fit.

Owns the rules of that section, seen from the machine that reads the configuration; each node checks its own files again
when its process starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Final

from core.component_tls import ComponentTLS
from core.config.model_files import file_location
from core.config.problems import ConfigProblem
from core.config.settings import Settings
from core.config.tree import Path, dotted
from core.errors import ConfigError

_FILES: Final[tuple[Path, ...]] = (("security", "ca"), ("security", "cert"), ("security", "key"))


def check_security(settings: Settings, base: FilePath | None) -> Iterator[ConfigProblem]:
    """Apply every rule; relative paths start at `base` (default: the working directory), else at the checkout."""
    if all(settings.value(path) is None for path in _FILES):
        return
    missing = [path for path in _FILES if settings.value(path) is None]
    if missing:
        first = next(path for path in _FILES if settings.value(path) is not None)
        words = " and ".join(dotted(path) for path in missing)
        yield settings.problem(first, f"needs {words} beside it", "give all three, or none for no TLS")
        return
    names = [settings.text(path) for path in _FILES]
    if not all(names):
        return
    try:
        ComponentTLS(*(file_location(name or "", base) for name in names)).for_servers()
    except ConfigError as exc:
        key, _, words = str(exc).partition(": ")
        at_fault = next((path for path in _FILES if key.startswith(dotted(path))), _FILES[1])
        yield settings.problem(at_fault, words)
