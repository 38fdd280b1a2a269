"""One Baton on a Ray of its own: up, serve, status, a dead worker, down."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.ray_processes import Baton, all_gone, tree

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Running:
    """A Baton that is up."""

    baton: Baton
    up: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.up["url"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    baton = Baton.in_folder(tmp_path_factory.mktemp("own"))
    up = baton.result("up", "ray.address=local")
    try:
        yield Running(baton, up)
    finally:
        baton.run("down")


def member(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in status["members"] if m["name"] == name)


def test_up_serves_completions(running: Running) -> None:
    body = {"model": "demo", "prompt": "To be", "max_tokens": 3}
    answer = httpx.post(running.url + "/v1/completions", json=body, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_status_shows_every_worker_and_its_load(running: Running) -> None:
    status = running.baton.result("status")
    assert (status["ok"], status["health"], status["started_ray"]) == (True, "ok", True)
    assert [(m["name"], m["state"]) for m in status["members"]] == [
        ("prefill-0", "ready"),
        ("decode-0", "ready"),
        ("router", "ready"),
    ]
    prefill, decode = member(status, "prefill-0"), member(status, "decode-0")
    assert prefill["fingerprint"] == decode["fingerprint"] != ""
    assert all(os.path.exists(f"/proc/{m['pid']}") for m in status["members"])
    assert status["loads"].keys() == {"prefill-0", "decode-0"}
    assert status["loads"]["decode-0"]["kv_blocks_total"] > 0


def test_doctor_finds_nothing_wrong(running: Running) -> None:
    answer = running.baton.result("doctor")
    assert (answer["ok"], answer["findings"]) == (True, [])
    assert [worker["name"] for worker in answer["workers"]] == ["prefill-0", "decode-0"]


def test_workers_that_share_a_node_have_cores_of_their_own(running: Running) -> None:
    status = running.baton.result("status")
    cores = [tuple(member(status, name)["cores"]) for name in ("prefill-0", "decode-0")]
    if len(os.sched_getaffinity(0)) < 2:
        assert cores == [(), ()]
        return
    assert len(set(cores[0]) | set(cores[1])) == 2
    for name, expected in zip(("prefill-0", "decode-0"), cores, strict=True):
        assert os.sched_getaffinity(member(status, name)["pid"]) == set(expected)


def test_ray_listens_on_the_loopback_address_only(running: Running) -> None:
    status = running.baton.result("status")
    assert status["ray_address"].startswith("127.0.0.1:")
    port = int(status["ray_address"].rpartition(":")[2])
    rows = [line.split() for f in ("tcp", "tcp6") for line in Path(f"/proc/net/{f}").read_text().splitlines()[1:]]
    listening = [row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port]
    assert listening
    assert all(address.endswith("0100007F") for address in listening)


def test_workers_run_at_ordinary_priority(running: Running) -> None:
    status = running.baton.result("status")
    assert [os.getpriority(os.PRIO_PROCESS, m["pid"]) for m in status["members"]] == [0, 0, 0]


def test_secrets_are_for_their_owner_only(running: Running) -> None:
    run_dir = Path(running.up["run_dir"])
    specs = sorted(run_dir.glob("*.spec.json"))
    assert [spec.name for spec in specs] == ["decode-0.spec.json", "prefill-0.spec.json", "router.spec.json"]
    assert {spec.stat().st_mode & 0o777 for spec in specs} == {0o600}
    tokens = {json.loads(spec.read_text())["token"] for spec in specs}
    assert len(tokens) == 1
    assert len(tokens.pop()) == 32


def test_a_second_up_is_refused_and_harms_nothing(running: Running) -> None:
    refused = running.baton.run("up", "ray.address=local")
    assert refused.returncode == 2
    assert f"runs already at {running.url}" in refused.stderr
    assert running.baton.result("status")["ok"]


def test_status_without_a_cluster_says_so(tmp_path: Path) -> None:
    baton = Baton.in_folder(tmp_path)
    shown = baton.run("status", "--json")
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["error"] == "not_running"
    assert baton.result("down") == {"ok": True, "stopped": False}


# The last two end what the module shares: they stay in this order, at the end.


def test_a_dead_worker_leaves_the_membership_at_once_and_comes_back(running: Running) -> None:
    pid = member(running.baton.result("status"), "prefill-0")["pid"]
    seen: list[list[str]] = []
    with httpx.Client(timeout=5) as client:

        def serving() -> list[str]:
            return [w["worker_id"] for w in client.get(running.url + "/workers").json()["workers"]]

        assert serving() == ["decode-0", "prefill-0"]  # the client is warm: a worker of no model is back in a second
        os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 60
        while not seen or seen[-1] != ["decode-0", "prefill-0"] or len(seen) == 1:
            found = serving()
            seen += [found] if not seen or found != seen[-1] else []
            assert time.monotonic() < deadline_s, (seen, running.baton.run("status").stdout)
    assert ["decode-0"] in seen
    status = running.baton.result("status")
    anew = member(status, "prefill-0")
    assert (anew["state"], anew["epoch"], anew["num_failures"]) == ("ready", 2, 1)
    assert any(e["subject"] == "prefill-0" and e["is_failure"] for e in status["events"])
    body = {"model": "demo", "prompt": "To be", "max_tokens": 3}
    assert httpx.post(running.url + "/v1/completions", json=body, timeout=30).status_code == 200


def test_down_leaves_no_process_and_keeps_the_logs(running: Running) -> None:
    record = running.baton.record()
    assert record is not None
    pids = tree(record["ray"]["pid"])
    assert len(pids) > 5
    assert running.baton.result("down")["stopped"] is True
    assert all_gone(pids)
    assert running.baton.record() is None
    assert not Path(record["ray_temp_dir"]).exists()
    run_dir = Path(running.up["run_dir"])
    assert {"decode-0.log", "prefill-0.log", "ray.log", "router.log", "ray"} <= {p.name for p in run_dir.iterdir()}
    assert list((run_dir / "ray").glob("gcs_server*"))
