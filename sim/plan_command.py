"""`baton plan`, and the planner of `pools: auto`: question, search, answer.

Owns the order of these, the progress line and what is written to a file. Must not know how the search works, nor Ray.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TextIO

from core.config.load import load_config
from core.config.models import BatonConfig
from core.errors import ConfigError
from core.planning import Inventory, PlannedPools
from sim.device_groups import found_devices, profile_file
from sim.figures import with_interval
from sim.plan import Candidate, Plan, PlanQuestion, Progress, Verdict
from sim.plan_json import plan_json
from sim.pools_block import PlannedKeys, planned_keys, pools_yaml, with_plan
from sim.questions import PlanFlags, Prepared, prepare
from sim.report import placement, render, shortfall_lines, verdict

OK, INFEASIBLE = 0, 3
_BAR = 24  # columns


@dataclass(frozen=True, slots=True)
class Output:
    """Where a plan goes."""

    out: TextIO
    err: TextIO
    as_json: bool = False
    write: Path | None = None  # a copy of the configuration with the plan in it


class Search(Protocol):
    """Answers a question; the real one is sim.search.search."""

    def __call__(self, question: PlanQuestion, *, progress: Progress | None = None) -> Plan: ...


def run(config: BatonConfig, config_file: Path, flags: PlanFlags, output: Output, search: Search | None = None) -> int:
    """Plan, show the answer and write it where asked to; return 0, or 3 if the promise cannot be kept.

    `search` in place of the real one. Raises ConfigError for what is missing or wrong.
    """
    if output.write is not None:
        _refuse_to_overwrite(output.write, config_file)
    prepared = prepare(config, flags)
    plan = _answer(prepared, ProgressLine(output.err) if output.err.isatty() else None, search)
    keys = planned_keys(plan.best.cluster, config) if plan.best is not None else None
    profile = profile_file(config, flags.devices)
    prepared = _noting_policy(prepared, keys, profile)
    if output.as_json:
        value = plan_json(plan, prepared.question, prepared.setting, keys.pools if keys else None)
        output.out.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        output.out.write(render(plan, prepared.question, prepared.setting, ascii_only=not _is_utf8(output.out)))
        if keys is not None:
            output.out.write("\n" + _block(keys, profile))
    if output.write is not None and keys is not None:
        _write(output.write, config_file, keys, profile)
        output.err.write(f"written: {output.write}\n")
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

    plan = _answer(prepared, progress, search)
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


def _answer(prepared: Prepared, progress: Progress | None, search: Search | None) -> Plan:
    try:
        return (search or _compiled_search())(prepared.question, progress=progress)
    finally:
        if isinstance(progress, ProgressLine):
            progress.clear()


def _compiled_search() -> Search:
    """Load the search only when it is needed: its simulator is compiled."""
    from sim.search import search

    return search


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


def _block(keys: PlannedKeys, profile: str | None) -> str:
    text = pools_yaml(keys.pools)
    sections: dict[str, list[str]] = {}
    for (section, key), value in keys.scalars(profile).items():
        if value:
            sections.setdefault(section, []).append(f"  {key}: {value}")
    return text + "".join(f"{section}:\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


def _lines(plan: Plan, prepared: Prepared) -> tuple[str, ...]:
    """Say in a few lines what was planned: the verdict, then both kinds beside each other."""
    lines = [verdict(plan, prepared.question)]
    for name, candidate in (("prefill and decode", plan.best_disaggregated), ("one pool", plan.best_one_pool)):
        if candidate is not None:
            lines.append(f"{name}: {with_interval(candidate.goodput)} requests/s with {placement(candidate.cluster)}")
    return (*lines, f"traffic: {prepared.setting.traffic}")


def _refuse_to_overwrite(target: Path, config_file: Path) -> None:
    if target.exists() and not (config_file.exists() and target.samefile(config_file)):
        raise ConfigError(f"--write {target}: the file exists; remove it, or give another name")
    if not target.parent.is_dir():
        raise ConfigError(f"--write {target}: there is no folder {target.parent}; make it first")


def _write(target: Path, config_file: Path, keys: PlannedKeys, profile: str | None) -> None:
    """Write the configuration with the plan in it, if it then says what was planned and else what it said."""
    text = with_plan(config_file.read_text(encoding="utf-8-sig"), keys.pools, keys.scalars(profile))
    draft = target.with_name(f".{target.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        if load_config(draft, environ={}).pools != keys.pools:
            raise ConfigError(f"--write {target}: the file would not say what was planned; copy the block by hand")
        draft.replace(target)
    except OSError as exc:
        raise ConfigError(f"--write {target}: cannot be written: {exc.strerror}") from exc
    finally:
        draft.unlink(missing_ok=True)


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").startswith("utf8")
