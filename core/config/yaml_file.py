"""A YAML file from the disk to plain values.

Owns what can be wrong with a file before its text is read. Must not know the schema.
"""

from __future__ import annotations

from pathlib import Path

from core.config.problems import ConfigProblem
from core.config.tree import ConfigTree
from core.config.yaml_text import read_yaml

_MAX_FILE_BYTES = 1 << 20  # a configuration is a few KiB; anything larger is another file


def read_yaml_file(
    path: Path, *, sections: str = "model, slo, pools, ...", empty: str = "`{}` stands for all defaults"
) -> tuple[ConfigTree, list[ConfigProblem]]:
    """Read a file whose root is a mapping; a file that cannot be read is a problem of the empty path."""
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
    return read_yaml(text, file=file, sections=sections, empty=empty)
