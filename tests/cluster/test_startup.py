"""Batons on a Ray of two nodes that was there before them: where they go, how they fail, what they leave alone."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_processes import Baton, TwoNodes, all_gone, tree, two_nodes, words_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def ray() -> Iterator[TwoNodes]:
    with two_nodes("prefill_capable", "decode_capable") as started:
        yield started


@pytest.fixture
def baton(tmp_path: Path) -> Iterator[Baton]:
    made = Baton.in_folder(tmp_path)
    yield made
    made.run("down")


def processes(ray: TwoNodes) -> list[int]:
    return [*tree(ray.head.pid), *tree(ray.second.pid)]


def workers_of(ray: TwoNodes) -> dict[str, int]:
    """Find the worker processes by their names, with the pid of the Ray node above each."""
    found = {}
    for node in (ray.head, ray.second):
        for pid in tree(node.pid):
            words = words_of(pid)
            if "cluster.worker_process" in words:
                found[Path(words[words.index("--spec") + 1]).name.removesuffix(".spec.json")] = node.pid
    return found


def test_each_pool_goes_to_the_nodes_that_carry_its_resource(ray: TwoNodes, baton: Baton) -> None:
    before = processes(ray)
    up = baton.result("up", f"ray.address={ray.address}", "pools.decode.replicas=2")
    assert workers_of(ray) == {"prefill-0": ray.head.pid, "decode-0": ray.second.pid, "decode-1": ray.second.pid}
    started = [pid for pid in processes(ray) if pid not in before]
    assert up["ok"]
    assert baton.result("down")["stopped"] is True
    assert all_gone(started)
    assert ray.alive


def test_pools_are_planned_for_the_nodes_of_a_joined_ray(ray: TwoNodes, baton: Baton) -> None:
    """All four workers find a place only because the nodes' marks for one pool do not bind a plan."""
    up = baton.result("up", f"ray.address={ray.address}", "pools=auto", "--planner=rest-decode")
    assert up["plan"] == ["one prefill worker, 3 decode", "seen: 2 nodes"]
    assert sorted(workers_of(ray).values()) == sorted([ray.head.pid, ray.second.pid] * 2)


def test_a_promise_that_cannot_be_kept_starts_nothing_on_a_joined_ray(ray: TwoNodes, baton: Baton) -> None:
    before = set(processes(ray))
    refused = baton.run("up", f"ray.address={ray.address}", "pools=auto", "--planner=nothing-fits")
    assert refused.returncode == 2
    assert "no pools on 2 nodes with 2 CPU workers of 1 core keep the promise" in refused.stderr
    assert set(processes(ray)) <= before
    assert baton.record() is None


def test_a_pool_that_fits_nowhere_is_refused_before_anything_starts(ray: TwoNodes, baton: Baton) -> None:
    before = set(processes(ray))
    refused = baton.run("up", f"ray.address={ray.address}", "pools.decode.replicas=3")
    assert refused.returncode == 2
    assert "pools.decode: worker 3 of 3 fits on no node" in refused.stderr
    assert "'decode_capable'" in refused.stderr
    assert set(processes(ray)) <= before
    assert baton.record() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])  # Ray resets the latter when it lets go
def test_a_signal_stops_what_was_started_and_leaves_ray_alive(
    ray: TwoNodes, baton: Baton, number: signal.Signals
) -> None:
    before = processes(ray)
    process = baton.start("up", "--foreground", f"ray.address={ray.address}")
    assert process.stdout is not None
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "Ctrl-C stops everything" in line:
                break
        started = [pid for pid in processes(ray) if pid not in before]
        assert len(started) >= 7, "".join(printed)  # controller, three hosts and what they host
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, out + err
    assert all_gone(started)
    assert ray.alive
    assert baton.record() is None


def test_ctrl_c_during_the_start_stops_what_was_started(ray: TwoNodes, baton: Baton) -> None:
    before = processes(ray)
    process = baton.start("up", f"ray.address={ray.address}")
    assert process.stdout is not None
    for line in process.stdout:
        if " placement " in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in err
    assert all_gone([pid for pid in processes(ray) if pid not in before])
    assert ray.alive
    assert baton.record() is None


def test_a_worker_that_fails_to_start_fails_up_with_its_reason_and_log(ray: TwoNodes, baton: Baton) -> None:
    before = processes(ray)
    failed = baton.run("up", f"ray.address={ray.address}", "--engine-arg=--no-such-flag")
    assert failed.returncode == 1
    assert "start_failed: " in failed.stderr
    assert "config_error: simulated engine: unknown flags --no-such-flag" in failed.stderr
    assert "end of " in failed.stderr
    assert all_gone([pid for pid in processes(ray) if pid not in before])
    assert baton.record() is None


def test_a_taken_port_is_refused_before_anything_starts(ray: TwoNodes, baton: Baton) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        refused = baton.run("up", f"ray.address={ray.address}", f"router.port={port}")
    assert refused.returncode == 2
    assert f"router.port: cannot listen on 127.0.0.1:{port}" in refused.stderr


def test_nobody_listens_at_the_address_given(baton: Baton) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failed = baton.run("up", f"ray.address=127.0.0.1:{unused.getsockname()[1]}")
    assert failed.returncode == 1
    assert "no Ray answers at 127.0.0.1:" in failed.stderr
