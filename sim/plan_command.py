"""`baton plan`, and the planner of `pools: auto`: question, search, answer.

Owns the order of these, the progress line and what is written to a file. Must not know how the search works, nor Ray.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TextIO

from core.config.load import load_config
from core.config.models import BatonConfig
from core.errors import ConfigError
from core.planning import Inventory, PlannedPools
from sim.comparison import comparison, placement
from sim.device_groups import found_devices, profile_file
from sim.faster_link import FasterLink, Search, try_faster_link
from sim.figures import with_interval
from sim.plan import Candidate, Plan, Verdict
from sim.plan_json import plan_json
from sim.pools_block import PlannedKeys, Scalar, planned_keys, pools_yaml, with_plan
from sim.questions import PlanFlags, Prepared, prepare
from sim.report import render, shortfall_lines, verdict

OK, INFEASIBLE = 0, 3
_PLANNED_FOR = ("model", "slo", "kv", "router")  # sections that a plan was made for, beside its own
_BAR = 24  # columns


@dataclass(frozen=True, slots=True)
class Output:
    """Where a plan goes."""

    out: TextIO
    err: TextIO
    as_json: bool = False
    write: Path | None = None  # a copy of the configuration with the plan in it


def run(config: BatonConfig, config_file: Path, flags: PlanFlags, output: Output, search: Search | None = None) -> int:
    """Plan, show the answer and write it where asked to; return 0, or 3 if the promise cannot be kept.

    `search` in place of the real one. Raises ConfigError for what is missing or wrong.
    """
    if output.write is not None:
        _refuse_to_overwrite(output.write, config_file)
    prepared = prepare(config, flags)
    plan, faster = _answer(prepared, output.err, search or _compiled_search(output.err))
    keys = planned_keys(plan.best.cluster, config) if plan.best is not None else None
    profile = profile_file(config, flags.devices)
    prepared = _noting_policy(prepared, keys, profile)
    if output.as_json:
        value = plan_json(plan, prepared.question, prepared.setting, keys.pools if keys else None, faster)
        output.out.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        ascii_only = not _is_utf8(output.out)
        output.out.write(render(plan, prepared.question, prepared.setting, faster=faster, ascii_only=ascii_only))
        if keys is not None:
            output.out.write("\n" + _block(keys, _changed(keys, profile, config)))
    if output.write is not None and keys is not None:
        for line in _write(output.write, config_file, keys, profile, config):
            output.err.write(f"{line}\n")
    return INFEASIBLE if plan.verdict is Verdict.INFEASIBLE else OK


def plan_pools(
    config: BatonConfig, inventory: Inventory, *, check: Callable[[], None], search: Search | None = None
) -> PlannedPools:
    """Plan for the devices that a cluster has; see core.planning.Planner. `search` in place of the real one."""
    kinds = {node.gpu_kind for node in inventory.nodes if node.gpus}
    if len(kinds) > 1 and not (config.plan.profile or config.plan.gpu):
        raise ConfigError(
            f"the cluster has GPUs of kinds {', '.join(sorted(kinds))}; name the one to plan for in plan.gpu, or its "
            "profile in plan.profile"
        )
    per_node = inventory.devices(cpus_per_worker=config.plan.cpus)
    devices = found_devices(config, per_node, next(iter(kinds), ""))
    prepared = prepare(config, PlanFlags(), devices)

    def progress(*, done: int, total: int, best: Candidate | None) -> None:
        check()

    plan = (search or _compiled_search(sys.stderr))(prepared.question, progress=progress)
    if plan.best is None:
        raise ConfigError(verdict(plan, prepared.question) + " Use a smaller model or more memory.")
    keys = planned_keys(plan.best.cluster, config)
    value = plan_json(plan, prepared.question, prepared.setting, keys.pools)
    follows_policy = keys.policy is not None and config.plan.profile is not None
    return PlannedPools(
        pools=keys.pools,
        lines=_lines(plan, prepared),
        plan_json=json.dumps(value, ensure_ascii=False, allow_nan=False),
        policy=keys.policy if follows_policy else None,
        whole_below_tokens=keys.whole_below_tokens,
        shortfall="\n".join(line.strip() for line in shortfall_lines(plan, prepared.question)),
    )


class ProgressLine:
    """One line that is written over and over: candidates done, and the best so far."""

    def __init__(self, stream: TextIO, *, columns: int | None = None) -> None:
        self._stream = stream
        self._columns = columns or shutil.get_terminal_size().columns
        full, empty = ("█", "░") if _is_utf8(stream) else ("#", ".")
        self._full, self._empty = full, empty
        self._written = ""

    def __call__(self, *, done: int, total: int, best: Candidate | None) -> None:
        """Write the line again if it has changed."""
        filled = _BAR * done // max(total, 1)
        text = f"{self._full * filled}{self._empty * (_BAR - filled)} {done}/{total}"
        if best is not None:
            text += f"  best {with_interval(best.goodput)} requests/s: {placement(best.cluster)}"
        text = text[: self._columns - 1]
        if text != self._written:
            self._stream.write("\r" + text.ljust(len(self._written)))
            self._stream.flush()
            self._written = text

    def clear(self) -> None:
        """Take the line away."""
        self._stream.write("\r" + " " * len(self._written) + "\r")
        self._stream.flush()


def _answer(prepared: Prepared, err: TextIO, search: Search) -> tuple[Plan, FasterLink | None]:
    """Search, and search again with a faster link where that may be why one pool wins."""
    progress = ProgressLine(err) if err.isatty() else None
    try:
        plan = search(prepared.question, progress=progress)
        return plan, try_faster_link(plan, prepared.question, search, progress=progress)
    finally:
        if progress is not None:
            progress.clear()


def _compiled_search(err: TextIO) -> Search:
    """Load the search only when it is needed; its simulator is compiled by the first run after a change of it."""
    from sim.kernel import compiled
    from sim.search import search
    from sim.search.referee import own_policy_rate

    if compiled.CACHE is None or not any(compiled.CACHE.rglob("*.nbc")):
        err.write("compiling the simulator, once: about half a minute\n")
        err.flush()
    return partial(search, referee=own_policy_rate)


def _noting_policy(prepared: Prepared, keys: PlannedKeys | None, profile: str | None) -> Prepared:
    """Say so when the plan counts on predictions that the live router could not make."""
    if keys is None or keys.policy is None or profile is not None:
        return prepared
    note = (
        f"the plan counts on the router policy {keys.policy}, which needs a measured profile: `python baton.py profile "
        "CONFIG` makes one for plan.profile"
    )
    setting = replace(prepared.setting, notes=(*prepared.setting.notes, note))
    return replace(prepared, setting=setting)


def _changed(keys: PlannedKeys, profile: str | None, config: BatonConfig) -> dict[tuple[str, str], Scalar]:
    """List the keys outside `pools` that the plan sets to something else than they are."""
    scalars = keys.scalars(profile)
    return {(part, key): v for (part, key), v in scalars.items() if getattr(getattr(config, part), key) != v}


def _block(keys: PlannedKeys, changed: Mapping[tuple[str, str], Scalar]) -> str:
    sections: dict[str, list[str]] = {}
    for (section, key), value in changed.items():
        sections.setdefault(section, []).append(f"  {key}: {value}")
    rest = (f"{section}:\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
    return pools_yaml(keys.pools) + "".join(rest)


def _lines(plan: Plan, prepared: Prepared) -> tuple[str, ...]:
    """Say in a few lines what was planned: the verdict, then both kinds beside each other."""
    question = prepared.question
    return (verdict(plan, question), *comparison(plan, question), f"traffic: {prepared.setting.traffic}")


def _refuse_to_overwrite(target: Path, config_file: Path) -> None:
    if target.exists() and not (config_file.exists() and target.samefile(config_file)):
        raise ConfigError(f"--write {target}: the file exists; remove it, or give another name")
    if not target.parent.is_dir():
        raise ConfigError(f"--write {target}: there is no folder {target.parent}; make it first")


def _write(
    target: Path, config_file: Path, keys: PlannedKeys, profile: str | None, config: BatonConfig
) -> Iterator[str]:
    """Write the configuration with the plan in it, if it then says what was planned and else what it said.

    Yields what to tell the user: that it is written, and which sections of `config` are not from the file.
    """
    before = load_config(config_file, environ={})
    text = config_file.read_text(encoding="utf-8-sig")
    text = with_plan(text, keys.pools, _changed(keys, profile, before))
    real = target.resolve()  # what a link points to is written, not the link
    draft = real.with_name(f".{real.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        if real.exists():
            shutil.copymode(real, draft)
        if load_config(draft, environ={}).pools != keys.pools:
            raise ConfigError(f"--write {target}: the file would not say what was planned; copy the block by hand")
        draft.replace(real)
    except OSError as exc:
        raise ConfigError(f"--write {target}: cannot be written: {exc.strerror}") from exc
    finally:
        draft.unlink(missing_ok=True)
    yield f"written: {target}"
    other = [name for name in _PLANNED_FOR if getattr(config, name) != getattr(before, name)]
    if other:
        yield (
            f"note: what --set or BATON_ variables say of {', '.join(other)} was planned for and is not in the file; "
            "give it to `up` again"
        )


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").startswith("utf8")
