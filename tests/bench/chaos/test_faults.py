"""Which processes a fault takes, and which it leaves alone."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.chaos.faults import CannotBreak, Scene, kill, lose_node
from bench.chaos.processes import is_baton
from bench.chaos.target import Member, Target
from bench.chaos.traffic import Traffic, make_load
from cluster.child import parent_of
from cluster.front import Front

WAIT = "import sys; sys.stdin.read()"
CHILD_ENDS_S = 20.0
# Prints the processes below it, one for each title that it is given, and ends with its standard input.
NODE = """
import subprocess, sys
waits, *titles = sys.argv[sys.argv.index("--") + 1:]
words = ["-c", waits, "cluster.worker_process"]
below = [subprocess.Popen([title, *words], executable=sys.executable) for title in titles]
print(*(one.pid for one in below), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Listed(Target):
    """A cluster whose status is known."""

    listed: tuple[Member, ...] = ()

    def members(self) -> tuple[Member, ...]:
        return self.listed


def member(name: str, pid: int) -> Member:
    role = None if name == "router" else name.partition("-")[0]
    return Member(name, role, "ready", 1, pid, "")


def scene(*members: Member, may_lose_nodes: bool = False) -> Scene:
    target = Listed(Path(), "", Path(), "", listed=members)
    load = make_load(num_prompts=1, max_tokens=1, num_clients=1, deadline_s=1.0, seed=0)
    return Scene(target, Traffic(Front(""), "", load), random.Random(0), may_lose_nodes=may_lose_nodes)


class Nodes:
    """Node processes as Ray's, with others below them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._program = folder / "raylet" / "raylet"
        self._program.parent.mkdir()
        self._program.symlink_to(sys.executable)
        self._stack = stack
        self.started: dict[int, subprocess.Popen[str]] = {}  # by process

    def start(self, *titles: str, flag: str = "--static_resource_list=CPU,2") -> tuple[int, ...]:
        """Start a node; return the processes below it."""
        command = [str(self._program), "-c", NODE, flag, "--", WAIT, *titles]
        node = self._stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self._stack.callback(node.kill)
        self.started[node.pid] = node
        assert node.stdout is not None
        return tuple(int(word) for word in node.stdout.readline().split())

    def head(self, *titles: str) -> tuple[int, ...]:
        return self.start(*titles, flag="--static_resource_list=node:__internal_head__,1.0")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path, stack)


def test_the_node_that_is_lost_has_workers_and_nothing_that_all_others_need(nodes: Nodes) -> None:
    (on_head,) = nodes.head("worker")
    router, beside_router = nodes.start("router", "worker")
    beside_controller, _ = nodes.start("worker", "ray::Controller")
    first, second = nodes.start("worker", "worker")
    spare = parent_of(first)
    members = (
        member("router", router),
        member("prefill-0", on_head),
        member("prefill-1", beside_router),
        member("prefill-2", first),
        member("decode-0", second),
        member("decode-1", beside_controller),
    )
    broken = asyncio.run(lose_node(scene(*members, may_lose_nodes=True)))
    assert broken.victims == ("prefill-2", "decode-0")
    nodes.started[spare].wait(CHILD_ENDS_S)
    assert [pid for pid, node in nodes.started.items() if node.poll() is not None] == [spare]
    with pytest.raises(CannotBreak, match="no node of Ray here has workers"):
        asyncio.run(lose_node(scene(*members[:3], members[5], may_lose_nodes=True)))


def test_a_node_is_lost_only_if_that_is_asked_for(nodes: Nodes) -> None:
    (router,) = nodes.head("router")
    prefill, decode = nodes.start("worker", "worker")
    members = member("router", router), member("prefill-0", prefill), member("decode-0", decode)
    with pytest.raises(CannotBreak, match="--fault lose-node"):
        asyncio.run(lose_node(scene(*members)))
    assert is_baton(prefill)
    assert is_baton(decode)


def test_a_process_that_is_not_batons_is_no_victim() -> None:
    other = subprocess.Popen([sys.executable, "-c", WAIT], stdin=subprocess.PIPE)
    try:
        with pytest.raises(CannotBreak, match="no ready decode on this machine"):
            asyncio.run(kill("decode")(scene(member("decode-0", other.pid))))
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()
    assert not is_baton(os.getpid())
