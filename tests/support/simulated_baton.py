"""Baton's command line with simulated engines, for tests of Ray: `python -m tests.support.simulated_baton VERB ...`.

`up [--foreground] [--json] [--engine-arg=FLAG]... KEY=VALUE...`, `status [--json]`, `down [--json]`.
"""

from __future__ import annotations

import sys

from cluster import commands
from core.config.load import load_config
from core.errors import BatonError, ConfigError


def main(words: list[str]) -> int:
    """Run one verb; 2 for an error in the configuration, 1 for any other."""
    verb, *rest = words
    as_json = "--json" in rest
    try:
        if verb == "up":
            return commands.up(
                load_config(None, overrides=[word for word in rest if not word.startswith("--")], environ={}),
                config_path=None,
                foreground="--foreground" in rest,
                as_json=as_json,
                engine_kind="simulated",
                engine_args=tuple(w.partition("=")[2] for w in rest if w.startswith("--engine-arg=")),
            )
        return (commands.status if verb == "status" else commands.down)(as_json=as_json)
    except BatonError as exc:
        sys.stderr.write(f"{exc.name}: {exc}\n")
        return 2 if isinstance(exc, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
