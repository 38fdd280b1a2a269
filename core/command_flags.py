"""Flags that several verbs of the command line share.

Owns their names and help. Loads nothing heavy: it is read for every `--help`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "deploy" / "slo.yaml"


def add_config(parser: argparse.ArgumentParser, *, optional: bool) -> None:
    """Add CONFIG, a YAML file, and `--set`, which replaces one of its values."""
    default = Path(os.path.relpath(DEFAULT_CONFIG))
    words = f"YAML file (default: {default})" if optional else "YAML file"
    parser.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?" if optional else None, default=default, help=words
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="replace one value, e.g. router.port=8001; may be repeated",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON, errors too")
