"""From configuration and flags to a question for the planner.

Owns what is assumed where nothing is said, and says so. Must not search, and must not know how the answer is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from core.config.model_files import file_location, read_model_facts
from core.config.models import BatonConfig
from core.config.specs import default_slo_class, served_model_name
from core.errors import ConfigError
from sim.device_groups import DeviceFlags, Devices, named_devices
from sim.generators import RECIPES, generate, with_classes
from sim.outcome import Target
from sim.plan import PlanQuestion
from sim.report import Setting
from sim.traces import read_trace
from sim.what_if import fixed_cluster
from sim.workload import Workload

DEFAULT_REQUESTS = 3000
_TRACE_REQUESTS = 6000  # of a recorded trace, unless more are asked for
_FEWEST_REQUESTS = 200  # under it an attainment of 90 % is known to about 5 points at best


@dataclass(frozen=True, slots=True)
class PlanFlags:
    """What the command line says."""

    devices: DeviceFlags = field(default_factory=DeviceFlags)
    trace: str | None = None
    workload: str | None = None
    rate: float | None = None
    num_requests: int | None = None
    gap_cv: float | None = None
    shares: tuple[str, ...] = ()  # "batch=0.2"
    what_if: tuple[str, ...] = ()  # "decode=3"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question, and what to say about it."""

    question: PlanQuestion
    setting: Setting


@dataclass(frozen=True, slots=True)
class _Traffic:
    workload: Workload
    text: str  # for people
    notes: tuple[str, ...] = ()


def prepare(config: BatonConfig, flags: PlanFlags, devices: Devices | None = None) -> Prepared:
    """Make the question of a configuration and flags; `devices` in place of those that they name.

    Raises ConfigError that names what is wrong or missing, and the remedy.
    """
    targets = targets_of(config)
    devices = devices or named_devices(config, flags.devices)
    rate = flags.rate if flags.rate is not None else config.plan.rate
    if rate is not None and not rate > 0:
        raise ConfigError(f"--rate is {rate:g}; it must be above 0 requests per second")
    traffic = _traffic(config, flags, targets, _longest(config, devices), rate)
    question = PlanQuestion(
        groups=devices.groups,
        targets=targets,
        workload=traffic.workload,
        rate=rate,
        seeds=tuple(range(flags.seed, flags.seed + 3)),
    )
    if flags.what_if:
        question = replace(question, fixed=fixed_cluster(config, question, flags.what_if))
    sources = dict.fromkeys(f"{g.profile.model} in {g.profile.engine}: {g.profile.source}" for g in devices.groups)
    setting = Setting(
        model=served_model_name(config),
        traffic=traffic.text,
        source="; ".join(sources),
        priced=devices.priced,
        notes=(*traffic.notes, *devices.notes),
    )
    return Prepared(question, setting)


def targets_of(config: BatonConfig) -> tuple[Target, ...]:
    """Return the promise to every class, in the order of the file."""
    return tuple(
        Target(name, promise.ttft_ms / 1000.0, promise.tpot_ms / 1000.0, promise.attainment)
        for name, promise in config.slo.classes.items()
    )


def _longest(config: BatonConfig, devices: Devices) -> int | None:
    """Return the limit of prompt and output together; None when nothing names one."""
    facts = read_model_facts(config.model.path)
    limits = [config.model.max_model_len, facts.max_model_len if facts else None]
    limits += [group.profile.max_model_len for group in devices.groups]
    return min((limit for limit in limits if limit is not None), default=None)


def _traffic(
    config: BatonConfig, flags: PlanFlags, targets: Sequence[Target], longest: int | None, rate: float | None
) -> _Traffic:
    if flags.num_requests is not None and flags.num_requests < _FEWEST_REQUESTS:
        raise ConfigError(f"--requests is {flags.num_requests}; give at least {_FEWEST_REQUESTS}, fewer say little")
    if flags.trace and flags.workload:
        raise ConfigError("--trace and --workload exclude each other; leave one of them out")
    trace = flags.trace or (None if flags.workload else config.plan.trace)
    if trace:
        traffic, has_classes = _recorded(config, flags, trace, targets, longest)
    else:
        traffic, has_classes = _generated(config, flags, longest, rate), False
    workload, notes = traffic.workload, list(traffic.notes)
    if has_classes and flags.shares:
        raise ConfigError("the trace names the class of each request; leave --share out")
    if not has_classes:
        workload, note = _with_shares(config, flags, workload, [t.name for t in targets])
        notes += note
    if not _caches_prefixes(config) and len(workload.prefix_start):
        none = np.zeros(0, np.int64)
        workload = replace(workload, prefix_start=none, prefix_ids=none)
        notes.append("prefix caching is off in model.engine_args: shared prefixes are computed each time")
    return _Traffic(workload, traffic.text, tuple(notes))


def _recorded(
    config: BatonConfig, flags: PlanFlags, file: str, targets: Sequence[Target], longest: int | None
) -> tuple[_Traffic, bool]:
    names = [target.name for target in targets]
    trace = read_trace(
        Path(file_location(file)),
        max_requests=flags.num_requests or _TRACE_REQUESTS,
        max_total_tokens=longest,
        class_names=names,
        default_class=names.index(default_slo_class(config)),
        seed=flags.seed,
    )
    workload = trace.workload
    if len(workload) < _FEWEST_REQUESTS:
        raise ConfigError(
            f"{file}: {len(workload)} requests are left of the trace; a plan needs at least {_FEWEST_REQUESTS} to say "
            "anything of 90 %"
        )
    recorded = f", recorded at {workload.rate:.3g}/s" if trace.has_arrivals else ""
    text = f"{workload.name}: {_lengths(workload)}{recorded}"
    return _Traffic(workload, text, trace.notes), trace.has_classes


def _generated(config: BatonConfig, flags: PlanFlags, longest: int | None, rate: float | None) -> _Traffic:
    name = flags.workload or config.plan.workload
    notes = () if name else ("nothing says what the traffic is like: chat is assumed; --workload or --trace names it",)
    name = name or "chat"
    workload = generate(
        name,
        num_requests=flags.num_requests or DEFAULT_REQUESTS,
        rate=rate or 1.0,
        seed=flags.seed,
        gap_cv=flags.gap_cv,
        max_total_tokens=longest,
    )
    return _Traffic(workload, f"{name} ({RECIPES[name].like}): {_lengths(workload)}", notes)


def _lengths(workload: Workload) -> str:
    prompt, output = workload.prompt_tokens.mean(), workload.output_tokens.mean()
    return f"{len(workload):,} requests, {prompt:,.0f} tokens in and {output:,.0f} out in the mean"


def _with_shares(
    config: BatonConfig, flags: PlanFlags, workload: Workload, names: Sequence[str]
) -> tuple[Workload, list[str]]:
    """Give requests their classes: as `--share` says, the rest and without it all the default class."""
    default = default_slo_class(config)
    parts = dict.fromkeys(names, 0.0)
    for text in flags.shares:
        name, _, number = text.partition("=")
        if name not in parts:
            raise ConfigError(f"--share {text}: there is no class {name!r}; the classes are {', '.join(names)}")
        parts[name] = _share(text, number)
    rest = 1.0 - sum(part for name, part in parts.items() if name != default)
    stated = any(text.partition("=")[0] == default for text in flags.shares)
    if rest < -1e-9 or (stated and abs(rest - parts[default]) > 1e-6):
        raise ConfigError(f"the shares {', '.join(flags.shares)} do not add up to 1; leave the default class out")
    parts[default] = max(rest, 0.0)
    empty = [name for name in names if not parts[name]]
    notes = []
    if empty:
        example = f"--share {empty[0]}=0.2"
        notes.append(f"no request of class {', '.join(empty)} is planned for; {example} adds some")
    if len(names) == 1 or not flags.shares:
        return replace(workload, slo_class=np.full(len(workload), names.index(default), np.int64)), notes
    return with_classes(workload, [parts[name] for name in names], seed=flags.seed), notes


def _share(text: str, number: str) -> float:
    try:
        share = float(number)
    except ValueError:
        share = float("nan")
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"--share {text}: write NAME=PART with a part from 0 to 1, e.g. batch=0.2")
    return share


def _caches_prefixes(config: BatonConfig) -> bool:
    """Whether the engines keep the KV of prefixes: they do, unless the flags of vLLM turn it off."""
    given = {key.replace("_", "-"): value for key, value in config.model.engine_args.items()}
    return given.get("enable-prefix-caching", True) is not False and given.get("no-enable-prefix-caching") is not True
