"""Everything that runs during a comparison: mock engines, Baton's router, the peers' routers, the load client.

Owns the processes, their cores and their end. Must not know what is made of the figures.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from bench.router.client import Load
from bench.router.mock_process import Addresses
from bench.router.peers import Peer, Ports
from bench.router.window import Window
from core.latency.step import StepCost, Table
from core.policy.context import ClassTarget, PolicyContext, PoolFacts
from core.router_spec import RouterSpec, SLOTarget
from core.types import Role
from engine.process_guard import die_with_parent

BATON: Final = "Baton"
DIRECT: Final = "no router"
_READY_S: Final = 60.0
_RETRY_S: Final = 0.2
_STOP_S: Final = 5.0
_PROBE: Final = b'{"model":"mock","prompt":"0000000000000000 hello","max_tokens":2,"temperature":0,"stream":true}'


class SiteFailed(Exception):
    """A process did not start or ended early; the message says which, and its last words."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where processes run; None: anywhere."""

    router: int | None = 0
    load: int | None = 1
    nice: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers completions at a port of this machine."""

    name: str
    port: int
    pid: int | None  # None: the mock itself


def router_spec(membership: str, run_dir: Path, *, policy: str, events_fd: int | None = None) -> RouterSpec:
    """Describe Baton's router as it is in life: predicting, admitting, logging, recording and counting.

    The costs are those of the mock engines, so that predictions are true and nothing is refused.
    """
    flat = Table((1.0,), (0.0,))
    cost = StepCost(Table((1.0, 8192.0), (1e-4, 1e-3)), flat, Table((1.0,), (1e-3,)), flat)
    facts = PoolFacts(cost, max_num_seqs=256, max_num_batched_tokens=8192)
    target = SLOTarget("interactive", ttft_s=2.0, tpot_s=0.1)
    context = PolicyContext(
        pools=dict.fromkeys(Role, facts),
        targets={target.name: ClassTarget(target.ttft_s, target.tpot_s, target.tier)},
        admit_by_ttft=True,
        admit_by_tpot=True,
    )
    return RouterSpec(
        host="127.0.0.1",
        membership_address=membership,
        run_dir=str(run_dir),
        slo_classes=(target,),
        slo_default=target.name,
        policy=policy,
        policy_context=context,
        record="traffic.jsonl",  # as a cluster does that says nothing of it
        events_fd=events_fd,
    )


class Site:
    """The processes of one comparison; made by `open_site`."""

    def __init__(self, run_dir: Path, cores: Cores) -> None:
        self.run_dir = run_dir
        self._cores = cores
        self._children: list[subprocess.Popen[str]] = []  # in order of start
        self._num_loads = 0
        self._mock = self._spawn("bench.router.mock_process", cores.load, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addresses = Addresses.from_json(_line(self._mock, "mock"))
        self.direct = Target(DIRECT, self.addresses.decode_ports[0], None)

    def set_timing(self, *, ttft_us: int, itl_us: int) -> None:
        """Change how fast the engines are."""
        assert self._mock.stdin is not None
        self._mock.stdin.write(f"{ttft_us} {itl_us}\n")
        self._mock.stdin.flush()
        _line(self._mock, "mock")

    def start_baton(self, policy: str) -> Target:
        """Start Baton's router and wait until it answers. Raises SiteFailed."""
        events_in, events_out = os.pipe()
        spec_file = self.run_dir / "router.spec.json"
        spec = router_spec(self.addresses.membership, self.run_dir, policy=policy, events_fd=events_out)
        spec_file.write_text(spec.to_json())
        router = self._spawn("router", self._cores.router, "--spec", str(spec_file), pass_fds=(events_out,))
        os.close(events_out)
        with os.fdopen(events_in) as events:
            event = json.loads(events.readline() or '{"event": "ended", "message": "it ended at once"}')
        if event["event"] != "ready":
            raise SiteFailed(f"{BATON}: {event['message']}")
        port = int(event["address"].rpartition(":")[2])
        return self._ready(Target(BATON, port, router.pid), router)

    def start_peer(self, peer: Peer, programs: Path) -> Target:
        """Start a peer and wait until it answers. Raises SiteFailed."""
        listen, metrics = _free_ports(2)
        ports = Ports(listen, metrics, self.addresses.prefill_ports, self.addresses.decode_ports)
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "RUST_LOG": "error"}
        router = self._start(peer.command(programs, ports), self._cores.router, env=env)
        return self._ready(Target(peer.name, listen, router.pid), router)

    def load(
        self, target: Target, load: Load, *, seconds: float, warm_s: float = 0.5, windows: int = 1
    ) -> Iterator[Window]:
        """Load a target; yield what was seen in each window as it ends. No prompt is ever sent twice."""
        self._num_loads += 1
        flags = ["--port", str(target.port), "--connections", str(load.connections), "--seconds", str(seconds)]
        flags += ["--prompt-bytes", str(load.prompt_bytes), "--max-tokens", str(load.max_tokens)]
        flags += ["--warm-s", str(warm_s), "--windows", str(windows), "--first-prompt", f"{self._num_loads}{0:011d}"]
        flags += ["--stream"] if load.stream else []
        flags += ["--watch", f"mock={self._mock.pid}"] + ([f"router={target.pid}"] if target.pid else [])
        client = self._spawn("bench.router.load_process", self._cores.load, *flags, stdout=subprocess.PIPE)
        try:
            for _ in range(windows):
                yield Window.from_json(_line(client, "load client"))
        finally:
            self._end(client)

    def close(self) -> None:
        """End every process."""
        for child in reversed(tuple(self._children)):
            self._end(child)

    def _spawn(self, module: str, core: int | None, *flags: str, **settings: object) -> subprocess.Popen[str]:
        return self._start([sys.executable, "-m", module, *flags], core, **settings)

    def _start(self, command: Sequence[str], core: int | None, **settings: object) -> subprocess.Popen[str]:
        settings.setdefault("stdout", subprocess.DEVNULL)
        with (self.run_dir / "stderr.log").open("a") as errors:
            try:
                child: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
                    command,
                    stderr=errors,
                    text=True,
                    start_new_session=True,
                    preexec_fn=functools.partial(_settle, os.getpid(), core, self._cores.nice),
                    **settings,
                )
            except subprocess.SubprocessError as exc:  # raised for anything that _settle cannot do
                remedy = "take --unpinned, or other cores, and no --nice below 0 without privileges"
                raise SiteFailed(f"cannot start on core {core} at priority {self._cores.nice}: {remedy}") from exc
        self._children.append(child)
        return child

    def _ready(self, target: Target, process: subprocess.Popen[str]) -> Target:
        """Wait until a router answers a request."""
        deadline_s = time.monotonic() + _READY_S
        while (answer := _probe(target.port)) != "200":
            if process.poll() is not None or time.monotonic() > deadline_s:
                words = (self.run_dir / "stderr.log").read_text().strip().splitlines()[-3:]
                raise SiteFailed(f"{target.name} does not answer ({answer}); last words: {' | '.join(words)}")
            time.sleep(_RETRY_S)
        return target

    def _end(self, child: subprocess.Popen[str]) -> None:
        if child.stdin is not None:
            child.stdin.close()
        child.terminate()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
        self._children.remove(child)


@contextlib.contextmanager
def open_site(cores: Cores) -> Iterator[Site]:
    """Start the mock engines; end everything afterwards."""
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        site = Site(Path(folder), cores)
        try:
            yield site
        finally:
            site.close()


def rss_mb(pid: int) -> float:
    """Add up the resident memory of a process and of all below it, in MiB."""
    total_kb, pids = 0, [pid]
    for each in pids:  # grows as children are found
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            total_kb += int(status.partition("VmRSS:")[2].split()[0])
            for task in Path(f"/proc/{each}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    return total_kb / 1024


def _settle(parent_pid: int, core: int | None, nice: int) -> None:
    """Run in the child before it becomes the program."""
    die_with_parent(parent_pid)
    if core is not None:
        os.sched_setaffinity(0, {core})
    if nice:
        os.nice(nice)
        with contextlib.suppress(FileNotFoundError):  # where sessions share the cores first (sched(7), autogroup)
            Path("/proc/self/autogroup").write_text(str(nice))


def _line(process: subprocess.Popen[str], name: str) -> str:
    stream: IO[str] | None = process.stdout
    assert stream is not None
    line = stream.readline()
    if not line:
        raise SiteFailed(f"the {name} ended with {process.wait()}")
    return line


def _free_ports(count: int) -> list[int]:
    """Find ports for programs that cannot tell which one they took; held open together, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _probe(port: int) -> str:
    """Ask for a completion; return the status, or what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers: Mapping[str, str] = {"content-type": "application/json"}
    try:
        connection.request("POST", "/v1/completions", _PROBE, headers)
        response = connection.getresponse()
        text = response.read()
        return str(response.status) if response.status == 200 else f"{response.status}: {text[:200]!r}"
    except (OSError, http.client.HTTPException) as exc:
        return f"{type(exc).__name__}: {exc}"
    finally:
        connection.close()
