"""The comparison: every system up at once, tests in turn, systems in turn within a test.

Owns the order. Must not know what figures are taken.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers_venv import PeersMissing
from bench.router.calm import wait_until_calm
from bench.router.figures import TESTS, Taken, Test
from bench.router.peers import PEERS, Peer, install
from bench.router.site import Cores, Site, SiteFailed, Target, open_site, rss_mb

PEERS_FOLDER: Final = Path(".baton/bench-peers")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared, and how long."""

    cores: Cores
    rounds: int = 3
    seconds: float = 2.0
    warm_s: float = 0.5
    calm_s: float = 0.0  # how long each test may wait for others to leave the machine alone
    policy: str = "slo-aware"
    tests: Sequence[Test] = TESTS
    peers: Sequence[Peer] = PEERS
    peers_folder: Path = PEERS_FOLDER


def compare(plan: Plan) -> tuple[list[Taken], list[str]]:
    """Run everything; return what was taken, and notes of what could not be had."""
    notes: list[str] = []
    with open_site(plan.cores) as site:
        targets = [site.start_baton(plan.policy), *_start_peers(site, plan, notes), site.direct]
        taken = list(_rounds(site, plan, targets))
    return taken, notes


def _start_peers(site: Site, plan: Plan, notes: list[str]) -> Iterator[Target]:
    if not plan.peers:
        return
    try:
        programs = install(plan.peers_folder).absolute()
    except PeersMissing as exc:
        notes.append(f"No peers, for they cannot be installed: {exc}")
        return
    for peer in plan.peers:
        try:
            yield site.start_peer(peer, programs)
        except SiteFailed as exc:
            notes.append(f"Left out: {exc}")


def _rounds(site: Site, plan: Plan, targets: Sequence[Target]) -> Iterator[Taken]:
    for index in range(plan.rounds):
        for test in plan.tests:
            site.set_timing(ttft_us=0, itl_us=test.itl_us)
            for place in range(len(targets)):  # whoever comes first in one round comes later in the next
                target = targets[(place + index) % len(targets)]
                yield _take(site, plan, target, test, index)


def _take(site: Site, plan: Plan, target: Target, test: Test, index: int) -> Taken:
    wait_until_calm(plan.calm_s)
    (window,) = site.load(target, test.load, seconds=plan.seconds, warm_s=plan.warm_s)
    memory = rss_mb(target.pid) if target.pid else 0.0
    sys.stderr.write(
        f"round {index + 1} {test.name:9} {target.name:26} {window.requests_per_s:8.0f}/s "
        f"p50 {window.latency.p50:7.3f} p99 {window.latency.p99:8.3f} ms, relay p99 {window.relay.p99:7.3f} ms, "
        f"router {window.cores('router'):.2f} load {window.cores('client') + window.cores('mock'):.2f} "
        f"others {window.other_cores:.2f} cores, {memory:.0f} MiB, {window.errors} errors\n"
    )
    return Taken(target.name, test.name, index, window, memory)
