"""Pools on a Ray of their own follow the traffic: the controller starts workers, and flips them when it changes.

No profile is given, so that the costs are measured on the way. The engines are simulated; all else is real.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.ray_processes import Baton
from tests.support.steady_load import steady_load

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

WORKERS = 4
FOLLOWS_S = 240.0  # a busy machine starts a worker, or sees what a phase asks for, in this time
ROLES_S = 0.2
# A prompt of 800 tokens takes 0.4 s of a prefill worker; a decode worker steps in 10 ms and 3 more for each sequence,
# so that seven at most are in time.
ENGINE = ("--prefill-tokens-per-s=2000", "--step-ms=10", "--step-ms-per-seq=3")
SETTINGS = (
    "ray.address=local",
    "pools.prefill.replicas=1",
    "pools.decode.replicas=1",
    f"pools.prefill.cpus={len(os.sched_getaffinity(0)) / WORKERS}",
    f"pools.decode.cpus={len(os.sched_getaffinity(0)) / WORKERS}",
    "router.admission=false",
    "slo.classes.interactive.ttft_ms=2000",
    "slo.classes.interactive.tpot_ms=32",
    "scaling.mode=auto",
    "scaling.interval_s=1",
)


class Pools:
    """A Baton that is up, and how its pools go on."""

    def __init__(self, baton: Baton, url: str) -> None:
        self.baton, self.url = baton, url

    def roles(self) -> dict[str, str]:
        """Ask the router for its workers and their roles."""
        with httpx.Client(timeout=30) as client:
            return {w["worker_id"]: w["role"] for w in client.get(self.url + "/workers").json()["workers"]}

    def count(self, role: str) -> int:
        return list(self.roles().values()).count(role)

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + FOLLOWS_S
        while not holds():
            assert time.monotonic() < deadline_s, self.baton.run("status").stdout
            time.sleep(ROLES_S)  # the router tells nobody of its workers

    def decided(self) -> list[dict[str, Any]]:
        return [d for d in self.baton.status()["decisions"] if d["by"] == "decider"]


@pytest.fixture
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    baton = Baton.in_folder(tmp_path_factory.mktemp("follow"))
    up = baton.result("up", *SETTINGS, *(f"--engine-arg={part}" for flag in ENGINE for part in flag.split("=")))
    try:
        yield Pools(baton, up["url"])
    finally:
        baton.run("down")


def test_pools_grow_with_long_outputs_and_flip_when_long_prompts_come_and_nothing_is_dropped(pools: Pools) -> None:
    with steady_load(pools.url, clients=16, tokens=60, prompt_words=10) as outputs:
        pools.wait(lambda: pools.count("decode") >= 3)
    grown = pools.roles()
    with steady_load(pools.url, clients=12, tokens=2, prompt_words=800) as prompts:
        pools.wait(lambda: pools.count("prefill") >= 2 and any(d["flips"] for d in pools.decided()))
        flipped = {name for name, role in pools.roles().items() if grown.get(name, role) != role}
        pools.wait(lambda: all(d["took_s"] is not None for d in pools.decided()))
    assert outputs.failures == prompts.failures == []
    assert len(outputs.ok) + len(prompts.ok) > 50
    assert flipped
    status = pools.baton.status()
    assert status["scaling"] == "auto"
    whats = [event["what"] for event in status["events"]]
    members = {m["name"]: m for m in status["members"]}
    for name in flipped:
        assert members[name]["epoch"] == 1, whats  # the process is the one that it was
    first = pools.decided()[0]
    assert first["reason"]
    assert first["figures"]["rate"] > 0
