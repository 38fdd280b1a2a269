"""What `baton plan` chose, served: the best pools of either family as `up` starts them, both at one rate.

Owns the rate, the configuration, and what the plan foresees of the very requests that are served. Must not serve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import yaml

from bench.pd_or_pool.planning import Predicted
from bench.pd_or_pool.serving import Part, Seen
from bench.pd_or_pool.verdict import APART, POOL
from bench.plan_live import KV_MB
from bench.serving import statistics
from core.config.load import load_config
from core.latency.profile import EngineProfile, profile_to_json
from core.types import Role
from sim.cluster import ClusterSpec
from sim.comparison import placement, steps
from sim.outcome import Target
from sim.plan import DeviceGroup, Interval
from sim.pools_block import planned_keys
from sim.search.goodput import Scenario
from sim.search.intervals import draws_of, in_world, interval
from sim.search.placements import Placement
from sim.search.referee import as_started

_FEWEST: Final = 40  # requests: a share of 90 % is then known to 8 points either way
_DRAWS: Final = 20
_TURN: Final = 9  # of the requests: none of those that the verdicts were measured with


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan's best of one family under one promise, and what it is asked."""

    workload: str
    target: Target
    family: str  # APART or POOL
    cluster: ClusterSpec
    part: Part

    @property
    def name(self) -> str:
        """Say it in a word that can be part of a file's name."""
        words = f"{self.workload} {self.target.name} {self.family}".replace(",", "").replace("/", "")
        return words.replace(" ", "-")

    def config(self, base: Path, profile: EngineProfile, folder: Path) -> Path:
        """Write what `up` takes: the planned pools, the promise, and a router that predicts and refuses."""
        keys = planned_keys(self.cluster, load_config(base, environ={}))
        pools = {Role.PREFILL: keys.pools.prefill, Role.DECODE: keys.pools.decode}
        engine = self.cluster.decode
        raw = yaml.safe_load(base.read_text(encoding="utf-8"))
        raw["slo"] = {"classes": {"all": _promise(self.target)}}
        raw["pools"] = {
            role.value: {
                "replicas": pool.replicas,
                "cpus": engine.tensor_parallel,  # here a device is a core, and an engine has so many of them
                "max_num_seqs": pool.max_num_seqs,
                "max_num_batched_tokens": pool.max_num_batched_tokens,
                "kv_cache_mb": KV_MB,
            }
            for role, pool in pools.items()
        }
        raw["router"] = {"policy": keys.policy or "slo-aware", "whole_below_tokens": keys.whole_below_tokens}
        folder.mkdir(parents=True, exist_ok=True)
        own_profile = folder / f"{self.name}.profile.json"
        shape = replace(profile.shape(engine.tensor_parallel), tensor_parallel=1)
        own_profile.write_text(profile_to_json(replace(profile, shapes=(shape,))), encoding="utf-8")
        raw["plan"] = {"profile": str(own_profile.resolve())}
        file = folder / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return file

    def foreseen(self, profile: EngineProfile) -> Interval:
        """Return the share of these requests that the router's policy keeps in simulation, over the profile's error."""
        requests, targets = self.part.requests(), (self.target,)
        groups = (DeviceGroup(profile, 1, self.cluster.gpus),)
        place = Placement(self.cluster, (0,) if self.cluster.prefill is None else (0, 0), 0.0)
        worlds = draws_of(Scenario((requests,), targets), groups=1, count=_DRAWS)
        shares = [
            as_started(in_world(place, groups, draw)[0].cluster, requests, targets).attainment(targets)[0]
            for draw in worlds
        ]
        return interval(np.array(shares), as_started(self.cluster, requests, targets).attainment(targets)[0])


def choices(workload: str, target: Target, predicted: Predicted, *, seconds: float) -> Iterator[Choice]:
    """List the plan's best of both families, at the rate between what the two are planned to carry."""
    found = {APART: predicted.plan.best_disaggregated, POOL: predicted.plan.best_one_pool}
    both = {family: each for family, each in found.items() if each is not None and each.goodput.mid > 0}
    if len(both) < len(found):
        return
    rate = float(f"{math.prod(each.goodput.mid for each in both.values()) ** 0.5:.2g}")
    part = Part(workload, rate, max(_FEWEST, round(rate * seconds)), 100 * _TURN)
    for family, each in both.items():
        yield Choice(workload, target, family, each.cluster, part)


def table(served: Sequence[tuple[Choice, Seen]], profile: EngineProfile) -> Iterator[str]:
    """Write what was chosen, what was foreseen of it, and what was seen."""
    yield (
        "| workload | promise, TTFT/TPOT ms | requests | the plan's best, tokens a step | foreseen, % | measured, % "
        "| TTFT alone | TPOT alone | no answer |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for choice, seen in served:
        target = choice.target
        ttft, tpot = np.array(seen.ttft_ms), np.array(seen.tpot_ms)
        answered = ~np.isnan(ttft)
        alone = (ttft[answered] <= 1e3 * target.ttft_s, tpot[answered] <= 1e3 * target.tpot_s)
        cells = (
            choice.workload,
            f"{target.name}, {1e3 * target.ttft_s:.0f}/{1e3 * target.tpot_s:.0f}",
            f"{choice.part.count} at {choice.part.rate:g}/s",
            f"{placement(choice.cluster)}, {steps(choice.cluster)}",
            _share(choice.foreseen(profile)),
            _share(statistics.share(seen.kept(target.ttft_s, target.tpot_s)).interval),
            *(f"{100 * each.mean():.0f}" if len(each) else "-" for each in alone),
            str(int((~answered).sum())),
        )
        yield f"| {' | '.join(cells)} |"


def _promise(target: Target) -> dict[str, float]:
    return {"ttft_ms": 1e3 * target.ttft_s, "tpot_ms": 1e3 * target.tpot_s, "attainment": target.attainment}


def _share(found: Interval) -> str:
    return f"{100 * found.mid:.0f} ({100 * found.low:.0f}..{100 * found.high:.0f})"
