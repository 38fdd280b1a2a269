"""Baton's command line with simulated engines, for tests of Ray: `python -m tests.support.simulated_baton VERB ...`.

`up [--foreground] [--json] [--engine-arg=FLAG]... [--planner=NAME] [--config=FILE] KEY=VALUE...`, `status [--json]`,
`down [--json]`, `explain ID [--json]`, `drain` and `flip` as on the real one, `apply [--plan] [--json] KEY=VALUE...`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from cluster import apply_command, commands, doctor, drain_command, flip_command
from core.command_flags import add_json
from core.config.load import load_config
from core.config.models import BatonConfig, PoolsConfig
from core.config.specs import planned_worker
from core.errors import BatonError, ConfigError
from core.planning import Inventory, PlannedPools, Planner
from sim.live_decider import live_decider


def rest_decode(config: BatonConfig, inventory: Inventory, *, check: Callable[[], None]) -> PlannedPools:
    """Plan one prefill worker and a decode worker on each device that is left, but three at most."""
    check()
    worker = planned_worker(config)
    left = min(max(sum(inventory.devices(cpus_per_worker=worker.cpus)) - 1, 1), 3)
    pools = PoolsConfig(prefill=worker, decode=worker.model_copy(update={"replicas": left}))
    lines = (f"one prefill worker, {left} decode", f"seen: {len(inventory.nodes)} nodes")
    return PlannedPools(pools, lines, json.dumps({"decode": left}), whole_below_tokens=32)


def nothing_fits(config: BatonConfig, inventory: Inventory, *, check: Callable[[], None]) -> PlannedPools:
    """Plan as ever, but say that the promise is not kept."""
    pools = rest_decode(config, inventory, check=check).pools
    return PlannedPools(pools, ("cannot be met",), "{}", shortfall="interactive.ttft_ms binds; 2500 can be kept")


def real(config: BatonConfig, inventory: Inventory, *, check: Callable[[], None]) -> PlannedPools:
    """Plan as the command line does; imported late, for the planner's libraries take long to load."""
    from sim.plan_command import plan_pools

    return plan_pools(config, inventory, check=check)


PLANNERS: dict[str, Planner | None] = {
    "": None,
    "rest-decode": rest_decode,
    "nothing-fits": nothing_fits,
    "real": real,
}


def values(words: list[str], flag: str) -> Iterator[str]:
    """Give what follows each occurrence of a flag that ends in `=`."""
    return (word.removeprefix(flag) for word in words if word.startswith(flag))


def explain(request_id: str, *, as_json: bool) -> str:
    """Explain a request as the command line does where no flag is given."""
    from router import explain_command

    return explain_command.answer(
        argparse.Namespace(request_id=request_id, url=None, ca=None, key_file=None, as_json=as_json)
    )


def on_worker(command: ModuleType, words: list[str]) -> int:
    """Run a verb that is about one worker, as the command line does."""
    parser = argparse.ArgumentParser()
    command.add_flags(parser)
    add_json(parser)
    code: int = command.run(parser.parse_args(words))
    return code


def main(words: list[str]) -> int:
    """Run one verb; 2 for an error in the configuration, 1 for any other."""
    verb, *rest = words
    as_json = "--json" in rest
    try:
        if verb == "up":
            file = next(values(rest, "--config="), None)
            return commands.up(
                load_config(
                    Path(file) if file else None,
                    overrides=[word for word in rest if not word.startswith("--")],
                    environ={},
                ),
                config_path=None,
                foreground="--foreground" in rest,
                as_json=as_json,
                engine_kind="simulated",
                engine_args=tuple(values(rest, "--engine-arg=")),
                planner=PLANNERS[next(values(rest, "--planner="), "")],
                decider=live_decider,
            )
        if verb == "apply":
            config = load_config(None, overrides=[word for word in rest if not word.startswith("--")], environ={})
            return apply_command.apply(config, only_plan="--plan" in rest, no_wait="--no-wait" in rest, as_json=as_json)
        if verb in ("drain", "flip"):
            return on_worker(drain_command if verb == "drain" else flip_command, rest)
        if verb == "explain":
            sys.stdout.write(explain(rest[0], as_json=as_json) + "\n")
            return 0
        return {"status": commands.status, "doctor": doctor.run, "down": commands.down}[verb](as_json=as_json)
    except BatonError as exc:
        sys.stderr.write(f"{exc.name}: {exc}\n")
        return 2 if isinstance(exc, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
