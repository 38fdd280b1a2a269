"""The file that a benchmark's result goes to, when its user named one.

Owns the error for a file that cannot be written.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError


def write_result(flag: str, path: Path, text: str) -> None:
    """Write `text` to the file that `flag` named. Raises ConfigError that names both."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{flag} {path}: cannot be written: {exc.strerror}") from exc
