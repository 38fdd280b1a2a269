"""Rays and Batons that tests start as child processes, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UP_S = 180.0  # a loaded machine starts Ray in half a minute
RAY_DIRS = "/tmp"  # Unix sockets: Ray's paths must stay short


@dataclass(frozen=True)
class Baton:
    """The command line with a state folder of its own and a model folder that simulated engines accept."""

    state_dir: Path
    model: Path
    home: Path  # of a user who has a token of Ray's, which must not come in the way

    @classmethod
    def in_folder(cls, folder: Path) -> Baton:
        model = folder / "demo"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        token = folder / "home" / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text("0123456789abcdef" * 4)
        return cls(folder / "state", model, folder / "home")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start one command; its output can be read as text."""
        environment = {**os.environ, "BATON_STATE_DIR": str(self.state_dir), "PYTHONPATH": str(ROOT)}
        environment["HOME"] = str(self.home)
        environment.pop("RAY_ADDRESS", None)
        arguments = list(words)
        if words[0] in ("up", "apply"):
            arguments[1:1] = [f"model.path={self.model}", "router.port=0"]  # first: the words given may replace them
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.simulated_baton", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, timeout_s: float = UP_S) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"{words} did not end in {timeout_s} s\n{out}\n{err}") from None
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def result(self, *words: str) -> dict[str, Any]:
        """Run one command that succeeds and return its JSON."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def status(self) -> dict[str, Any]:
        """Return the JSON of `status`, whatever its exit code."""
        answer: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return answer

    def record(self) -> Mapping[str, Any] | None:
        """Return the record on disk; None when there is none."""
        file = self.state_dir / "cluster.json"
        return json.loads(file.read_text()) if file.exists() else None


def tree(pid: int) -> list[int]:
    """List a process and all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def parent_of(pid: int) -> int:
    """Return the parent of a process that runs."""
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def words_of(pid: int) -> list[str]:
    """Return the words a process was started with; none of one that has ended meanwhile."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int], within_s: float = 10.0) -> bool:
    """Wait until none of `pids` runs."""
    deadline_s = time.monotonic() + within_s
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)  # these are nobody's children here: no event tells of their end
    return True


@dataclass(frozen=True)
class TwoNodes:
    """A Ray of two nodes on this machine, started as users do."""

    address: str
    head: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        return self.head.poll() is None and self.second.poll() is None


@contextlib.contextmanager
def two_nodes(
    head_resource: str,
    second_resource: str,
    *,
    addresses: tuple[str, str] | None = None,
    second_prefix: tuple[str, ...] = (),
) -> Iterator[TwoNodes]:
    """Start a Ray of two nodes of two cores, each with one of two custom resources; end it afterwards.

    They have the IP `addresses`, if those are given; `second_prefix` comes before the command of the second.
    """
    own = [f"--node-ip-address={address}" for address in addresses or ()]
    folder = Path(tempfile.mkdtemp(prefix="bt-", dir=RAY_DIRS))
    started: list[subprocess.Popen[bytes]] = []
    try:
        head_flags = ("--head", "--port=0", "--include-dashboard=false", *own[:1])
        head = _ray_start(folder / "1", *head_flags, resource=head_resource)
        started.append(head)
        address = _address_of(head, folder / "1" / "out")
        second_flags = (f"--address={address}", *own[1:])
        second = _ray_start(folder / "2", *second_flags, resource=second_resource, prefix=second_prefix)
        started.append(second)
        _wait_for(second, folder / "2" / "out", "Ray runtime started")
        yield TwoNodes(address, head, second)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def autoscaling(*, head_cpus: int, node_cpus: int, most_nodes: int) -> Iterator[str]:
    """Start a Ray of one node whose autoscaler makes others when asked to, here too; yield its address."""
    folder = Path(tempfile.mkdtemp(prefix="ba-", dir=RAY_DIRS))
    port = _free_port()
    address = f"127.0.0.1:{port}"
    head: subprocess.Popen[bytes] | None = None
    try:
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(_autoscaling_config(address, head_cpus, node_cpus, most_nodes)))
        flags = ("--head", f"--port={port}", "--node-ip-address=127.0.0.1", f"--autoscaling-config={config}")
        variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
        head = _ray_start(folder / "1", *flags, "--include-dashboard=false", cpus=head_cpus, variables=variables)
        _wait_for(head, folder / "1" / "out", "Ray runtime started")
        yield address
    finally:
        if head is not None:
            below = tree(head.pid)
            head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(20)
            for pid in below:  # the nodes that the autoscaler made are not tied to it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            head.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaling_config(address: str, head_cpus: int, node_cpus: int, most_nodes: int) -> dict[str, Any]:
    """Write what Ray's provider of nodes for tests needs; its wheel lacks the file that Ray's own helper reads."""
    head = {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0}
    node = {"resources": {"CPU": node_cpus}, "node_config": {}, "min_workers": 0, "max_workers": most_nodes}
    return {
        "cluster_name": "made",
        "max_workers": most_nodes,
        "idle_timeout_minutes": 10,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, "node": node},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "upscaling_speed": 1.0,
    }


@contextlib.contextmanager
def job_server() -> Iterator[str]:
    """Start a Ray of one node that takes jobs, as on a cluster's head; yield the URL of its job server."""
    folder = Path(tempfile.mkdtemp(prefix="bj-", dir=RAY_DIRS))
    head: subprocess.Popen[bytes] | None = None
    try:
        head = _ray_start(folder / "1", "--head", "--port=0", "--dashboard-host=127.0.0.1", resource="here")
        log = folder / "1" / "out"
        _wait_for(head, log, "Ray runtime started")
        found = re.search(r"127\.0\.0\.1:\d+(?=\s*$)", _wait_for(head, log, "view the dashboard at"), re.MULTILINE)
        assert found is not None, log.read_text()
        yield f"http://{found[0]}"
    finally:
        if head is not None:
            head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(20)
            head.kill()
            head.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _ray_start(
    folder: Path,
    *flags: str,
    resource: str = "",
    cpus: int = 2,
    variables: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> subprocess.Popen[bytes]:
    folder.mkdir()
    command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags]
    command += [f"--num-cpus={cpus}", "--num-gpus=0", "--disable-usage-stats"]
    command += ["--resources", json.dumps({resource: 1})] if resource else []
    command += ["--object-store-memory=80000000", f"--temp-dir={folder}", "--log-style=record", "--log-color=false"]
    if "--head" in flags:
        command += [] if any("autoscaling" in flag for flag in flags) else ["--no-monitor"]
        command += [f"--ray-client-server-port={_free_port()}", f"--dashboard-port={_free_port()}"]
    command += ["--include-log-monitor=false", f"--dashboard-agent-listen-port={_free_port()}"]
    environment = {**os.environ, "RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
    environment["RAY_AUTH_MODE"] = "disabled"  # whatever token the machine's user has
    environment |= variables or {}
    with (folder / "out").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)


def _address_of(head: subprocess.Popen[bytes], log: Path) -> str:
    text = _wait_for(head, log, "ray start --address='")
    return text.partition("ray start --address='")[2].partition("'")[0]


def _wait_for(process: subprocess.Popen[bytes], log: Path, words: str) -> str:
    deadline_s = time.monotonic() + UP_S
    while words not in (text := log.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < deadline_s, text
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
