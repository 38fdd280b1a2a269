"""How fast both gears of the simulator are, and how far they differ: `python -m bench.two_gears`.

Owns the settings and the tables. The search gear routes by compiled rules, the full gear by the router's own policy
objects; attainment and goodput of one and the same requests are set side by side. Times are of the processor, not of
the clock, and without compiling. Profiles are those the project ships; nothing else is read.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from core.latency.profile import EngineProfile, read_profile
from core.policy.registry import POLICIES, policy_named
from sim.cluster import Admission, ClusterSpec, LinkSpec, Mode, PoolSpec, Routing
from sim.generators import generate
from sim.outcome import Outcome, Target
from sim.policy_gear import context_of, simulate_with_policy, with_predicting_policy
from sim.search.goodput import WARM_UP_SHARE, Judge, Scenario, Simulate, rate_of
from sim.search.placements import Placement
from sim.simulate import simulate
from sim.workload import Workload

PROFILE: Final = Path(__file__).resolve().parents[1] / "deploy" / "profiles" / "opt-13b-a100.json"
LINK_BYTES_PER_S: Final = 25e9  # 200 Gbit/s, between nodes
TARGETS: Final = (Target("interactive", ttft_s=0.4, tpot_s=0.04),)
MAX_NUM_BATCHED_TOKENS: Final = 2048
PLAIN: Final = Routing()
SPEED_RATE: Final = 20.0  # requests/s on four pairs, close to what they carry


@dataclass(frozen=True, slots=True)
class Setting:
    """One cluster under one kind of traffic."""

    name: str
    cluster: ClusterSpec
    workload: Workload


@dataclass(frozen=True, slots=True)
class Compared:
    """Both gears on one setting."""

    name: str
    search_goodput: float
    full_goodput: float
    rate: float  # the search gear's goodput, or near it
    search_attainment: float
    full_attainment: float


def cluster_of(profile: EngineProfile, prefill: int, decode: int, routing: Routing = PLAIN) -> ClusterSpec:
    """Make a cluster of one-GPU workers; with no prefill workers, one pool in chunks."""
    shape = profile.shape(1)
    pool = PoolSpec(decode, shape.cost, shape.kv_capacity_tokens, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS)
    link = LinkSpec(LINK_BYTES_PER_S, 1e-4, profile.kv_bytes_per_token)
    if not prefill:
        return ClusterSpec(Mode.ONE_POOL_CHUNKED, pool, link=link, routing=routing)
    mode = Mode.HYBRID if routing.whole_below_tokens or routing.overflow else Mode.DISAGGREGATED
    return ClusterSpec(mode, pool, replace(pool, replicas=prefill), link=link, routing=routing)


def settings(profile: EngineProfile, num_requests: int) -> Iterator[Setting]:
    """Name the settings: splits, modes, kinds of traffic, admission, and old state."""
    most = profile.max_model_len
    chat = generate("chat", num_requests=num_requests, rate=10.0, seed=0, max_total_tokens=most)
    code = generate("code", num_requests=num_requests, rate=10.0, seed=0, max_total_tokens=most)
    hybrid = Routing(whole_below_tokens=128, overflow=True, admission=Admission.TTFT)
    yield Setting("4P4D, chat", cluster_of(profile, 4, 4), chat)
    yield Setting("2P6D, chat", cluster_of(profile, 2, 6), chat)
    yield Setting("2P6D, chat, admission", cluster_of(profile, 2, 6, Routing(admission=Admission.TTFT_AND_TPOT)), chat)
    yield Setting("2P6D, chat, state 100 ms old", cluster_of(profile, 2, 6, Routing(state_delay_s=0.1)), chat)
    yield Setting("2P6D hybrid, chat, admission", cluster_of(profile, 2, 6, hybrid), chat)
    yield Setting("5P3D, code", cluster_of(profile, 5, 3), code)
    yield Setting("8 in one pool, chat", cluster_of(profile, 0, 8), chat)


def compare(setting: Setting) -> Compared:
    """Find the goodput by each gear, and attainment by both at the search gear's."""
    search = _goodput(setting, simulate)
    full = _goodput(setting, with_predicting_policy)
    rate = search or full or setting.workload.rate
    offered, skip = setting.workload.at_rate(rate), int(WARM_UP_SHARE * len(setting.workload))

    def attained(run: Simulate) -> float:
        return run(setting.cluster, offered, TARGETS).attainment(TARGETS, skip=skip)[0]

    return Compared(setting.name, search, full, rate, attained(simulate), attained(with_predicting_policy))


def _goodput(setting: Setting, run: Simulate) -> float:
    """Return the highest rate that is kept, 0 for none; whether queues grow is not asked, for it favours neither."""
    judge = Judge(Scenario((setting.workload,), TARGETS), run)
    placement = Placement(setting.cluster, group=(0, 0), price_per_hour=0.0)
    step = judge.highest_step(placement, hint=10.0)
    return 0.0 if step is None else rate_of(step)


def requests_per_s(run: Callable[[], Outcome]) -> float:
    """Return simulated requests for each second of the processor; the first run, which may compile, does not count."""
    run()
    began_s = time.process_time()
    outcome = run()
    return len(outcome.end) / (time.process_time() - began_s)


def speeds(profile: EngineProfile, num_requests: int) -> Iterator[tuple[str, float]]:
    """Time both gears on 4P4D, the full one with every policy."""
    cluster = cluster_of(profile, 4, 4)
    load = generate("chat", num_requests=num_requests, rate=SPEED_RATE, seed=0, max_total_tokens=profile.max_model_len)
    yield "search gear", requests_per_s(lambda: simulate(cluster, load, TARGETS))
    for name in sorted(POLICIES):
        policy = policy_named(name, context_of(cluster, TARGETS))
        yield f"full gear, {name}", requests_per_s(lambda p=policy: simulate_with_policy(cluster, load, TARGETS, p))  # type: ignore[misc]


def report(timed: Iterator[tuple[str, float]], compared: Iterator[Compared]) -> Iterator[str]:
    """Write both tables in Markdown, line by line as the figures come."""
    yield "| 4P4D, one core | simulated requests/s |"
    yield "|---|---|"
    for name, speed in timed:
        yield f"| {name} | {speed:,.0f} |"
    yield ""
    yield "| setting | goodput, search, req/s | full | difference | at req/s | attainment, search | full | difference |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in compared:
        share = row.full_goodput / row.search_goodput - 1 if row.search_goodput else float("nan")
        points = 100 * (row.full_attainment - row.search_attainment)
        yield (
            f"| {row.name} | {row.search_goodput:.2f} | {row.full_goodput:.2f} | {share:+.1%} | {row.rate:.2f} "
            f"| {row.search_attainment:.1%} | {row.full_attainment:.1%} | {points:+.1f} points |"
        )


def main() -> int:
    """Run everything; about a minute on one core."""
    parser = argparse.ArgumentParser(prog="bench.two_gears", description="Compare both gears of the simulator.")
    parser.add_argument("--requests", type=int, default=3000, help="requests of each simulation (%(default)s)")
    parser.add_argument("--profile", type=Path, default=PROFILE, help="profile with a one-GPU size (%(default)s)")
    options = parser.parse_args()
    profile = read_profile(options.profile)
    compared = (compare(setting) for setting in settings(profile, options.requests))
    for line in report(speeds(profile, options.requests), compared):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
