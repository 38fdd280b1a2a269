"""One cluster on a Ray of its own, changed by commands and hurt while it serves; see test_controller for the rest.

The tests share the cluster and take it as the one before left it: each begins by bringing the pools to their size.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.ray_processes import Baton, all_gone, tree, words_of
from tests.support.steady_load import steady_load

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BACK_S = 60.0  # a machine that is busy with other tests starts a worker in this time
SETTINGS = (
    "ray.address=local",
    "pools.prefill.replicas=2",
    "pools.decode.replicas=2",
    "pools.prefill.cpus=0",
    "pools.decode.cpus=0",
    "healing.first_delay_s=0.1",
    "healing.max_failures=100",
    "slo.classes.interactive.ttft_ms=60000",
    "slo.classes.interactive.tpot_ms=60000",
)


class Cluster:
    """A Baton that is up, and what tests ask of it."""

    def __init__(self, baton: Baton, url: str) -> None:
        self.baton = baton
        self.url = url

    def status(self) -> dict[str, Any]:
        return self.baton.status()

    def member(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(m for m in self.status()["members"] if m["name"] == name)
        return found

    def serving(self) -> dict[str, dict[str, Any]]:
        """Ask the router which workers it has, by id."""
        with httpx.Client(timeout=5) as client:
            return {w["worker_id"]: w for w in client.get(self.url + "/workers").json()["workers"]}

    def apply(self, *changes: str) -> dict[str, Any]:
        return self.baton.result("apply", *SETTINGS, *changes)

    def wait(self, holds: Callable[[], bool], within_s: float = BACK_S) -> float:
        """Wait until something holds; return the seconds it took."""
        began_s = time.monotonic()
        while not _holds(holds):
            assert time.monotonic() - began_s < within_s, self.baton.run("status").stdout
            time.sleep(0.02)  # the router tells nobody of its workers
        return time.monotonic() - began_s


def _holds(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    baton = Baton.in_folder(tmp_path_factory.mktemp("kept"))
    up = baton.result("up", *SETTINGS)
    try:
        yield Cluster(baton, up["url"])
    finally:
        baton.run("down")


ALL = {"prefill-0", "prefill-1", "decode-0", "decode-1"}


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    shared.wait(lambda: len(shared.serving()) == 4)
    return shared


def controller_pid(cluster: Cluster) -> int:
    """Find the process of the controller by the title that Ray gives it."""
    record = cluster.baton.record()
    assert record is not None
    for pid in tree(record["ray"]["pid"]):
        if "".join(words_of(pid)[:1]).startswith("ray::Controller"):
            return pid
    raise AssertionError("there is no controller")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_worker_that_is_killed_is_known_within_a_second_and_comes_back(cluster: Cluster) -> None:
    before = cluster.serving()["decode-1"]
    os.kill(cluster.member("decode-1")["pid"], signal.SIGKILL)
    cluster.wait(lambda: cluster.serving().get("decode-1", before)["epoch"] > before["epoch"])
    events = [e for e in cluster.status()["events"] if e["subject"] == "decode-1"]
    assert "ended: exited with -9; started again in 0." in next(e for e in events if e["is_failure"])["what"]


def test_the_router_comes_back_on_its_port(cluster: Cluster) -> None:
    pid = cluster.member("router")["pid"]
    os.kill(pid, signal.SIGKILL)
    assert all_gone([pid])
    cluster.wait(lambda: cluster.serving().keys() >= ALL)
    assert cluster.member("router")["pid"] != pid
    assert httpx.get(cluster.url + "/health", timeout=5).status_code == 200


def test_a_killed_controller_is_made_anew_while_requests_are_served(cluster: Cluster) -> None:
    before = cluster.status()
    with steady_load(cluster.url) as answers:
        os.kill(controller_pid(cluster), signal.SIGKILL)
        status = cluster.baton.result("status")
    assert answers.failures == []
    assert len(answers.ok) > 10
    pids = {m["name"]: (m["pid"], m["epoch"], m["state"]) for m in before["members"]}
    assert {m["name"]: (m["pid"], m["epoch"], m["state"]) for m in status["members"]} == pids
    assert any(e["subject"] == "controller" and "made anew; 4 of 4" in e["what"] for e in status["events"])
    os.kill(cluster.member("prefill-0")["pid"], signal.SIGKILL)  # it is looked after as before
    epoch = next(m["epoch"] for m in before["members"] if m["name"] == "prefill-0")
    cluster.wait(lambda: "prefill-0" in cluster.serving() and cluster.serving()["prefill-0"]["epoch"] > epoch)


def test_a_worker_whose_host_dies_gets_another_place(cluster: Cluster) -> None:
    epoch = cluster.serving()["prefill-1"]["epoch"]
    os.kill(parent_of(cluster.member("prefill-1")["pid"]), signal.SIGKILL)
    cluster.wait(lambda: "prefill-1" in cluster.serving() and cluster.serving()["prefill-1"]["epoch"] > epoch)


def test_a_flip_drops_no_request(cluster: Cluster) -> None:
    with steady_load(cluster.url) as answers:
        flipped = cluster.baton.result("flip", "decode-1", "prefill")
        cluster.wait(lambda: cluster.serving()["decode-1"]["role"] == "prefill")
        back = cluster.baton.result("flip", "decode-1", "decode")
        cluster.wait(lambda: cluster.serving()["decode-1"]["role"] == "decode")
    assert answers.failures == []
    assert (flipped["role"], back["role"]) == ("prefill", "decode")
    assert flipped["epoch"] == back["epoch"]


def test_a_drained_worker_is_gone_and_an_apply_brings_another(cluster: Cluster) -> None:
    with steady_load(cluster.url) as answers:
        drained = cluster.baton.result("drain", "decode-1")
        assert (drained["is_done"], drained["role"]) == (True, None)
        assert cluster.status()["wanted"] == {"prefill": 2, "decode": 1}
        assert cluster.apply("pools.decode.replicas=3")["ok"]
        cluster.wait(lambda: len(cluster.serving()) == 5)
        assert cluster.apply()["changes"] == ["the decode pool: 3 -> 2"]
    assert answers.failures == []
    assert cluster.apply()["changes"] == []


def test_an_upgrade_rolls_pair_by_pair_and_drops_no_request(cluster: Cluster) -> None:
    old = cluster.member("decode-0")["fingerprint"]
    with steady_load(cluster.url) as answers:
        applied = cluster.apply("model.block_size=64")
    assert applied["ok"]
    assert answers.failures == []
    workers = [m for m in cluster.status()["members"] if m["role"]]
    assert len(workers) == 4
    assert len({m["fingerprint"] for m in workers}) == 1
    assert workers[0]["fingerprint"] != old
    assert cluster.apply()["ok"]


def test_what_cannot_be_changed_or_does_not_fit_is_said_and_changes_nothing(cluster: Cluster) -> None:
    before = cluster.serving().keys()  # an upgrade with room has left workers of other names
    refused = cluster.baton.run("apply", *SETTINGS, "ray.dashboard=true")
    assert refused.returncode == 2
    assert "ray.dashboard: cannot change while the cluster runs; use `down` and `up`" in refused.stderr
    refused = cluster.baton.run("apply", *SETTINGS, "pools.decode.replicas=6", "pools.decode.cpus=1000")
    assert refused.returncode == 2
    assert "the cluster has room for 2 of 6 workers" in refused.stderr
    refused = cluster.baton.run("drain", "decode-9")
    assert refused.returncode == 2
    assert "there is no worker 'decode-9'" in refused.stderr
    assert cluster.serving().keys() == before
