"""The router as a child process: what it is told, how it starts, fails and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import router_process
from cluster.host_events import Ended, HostEvent, RouterReady, Spawned
from cluster.router_process import RouterProcess
from cluster.state import CHECKOUT, ProcessIdentity
from core.config.models import BatonConfig, RouterConfig
from core.router_spec import RouterSpec

WAIT_S = 30.0


@pytest.fixture
def fields(tmp_path: Path) -> RouterSpec:
    config = BatonConfig(router=RouterConfig(port=0))
    return RouterSpec.from_config(config, membership_address="127.0.0.1:1", run_dir=str(tmp_path), token="secret")


async def event(process: RouterProcess) -> HostEvent:
    async with asyncio.timeout(WAIT_S):
        return await process.next_event()


async def pid_of(process: RouterProcess) -> int:
    spawned = await event(process)
    assert isinstance(spawned, Spawned)
    return spawned.pid


async def test_a_router_starts_and_ends(fields: RouterSpec, tmp_path: Path) -> None:
    process = await RouterProcess.start(fields, tmp_path / "router.log")
    pid = await pid_of(process)
    ready = await event(process)
    assert isinstance(ready, RouterReady)
    host, _, port = ready.address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=WAIT_S).close()
    assert (tmp_path / "router.spec.json").stat().st_mode & 0o777 == 0o600
    await process.stop(WAIT_S)
    ended = await event(process)
    assert isinstance(ended, Ended)
    assert (ended.code, ended.reason) == (0, "exited with 0")
    said = (tmp_path / "router.log").read_text()
    assert "the router runs " in said
    assert "too early" not in said  # nothing that may be compiled is imported before that is settled
    assert ProcessIdentity.of(pid) is None


async def test_a_router_that_cannot_listen_tells_why(fields: RouterSpec, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        process = await RouterProcess.start(replace(fields, port=port), tmp_path / "router.log")
        await pid_of(process)
        ended = await event(process)
    assert isinstance(ended, Ended)
    assert ended.code == 1
    assert str(port) in ended.reason
    assert any(str(port) in line for line in ended.last_log_lines)


async def test_a_killed_router_is_noticed(fields: RouterSpec, tmp_path: Path) -> None:
    process = await RouterProcess.start(fields, tmp_path / "router.log")
    pid = await pid_of(process)
    assert isinstance(await event(process), RouterReady)
    os.kill(pid, signal.SIGKILL)
    ended = await event(process)
    assert isinstance(ended, Ended)
    assert (ended.code, ended.reason) == (-9, "exited with -9")
    await process.stop(0)


async def test_a_router_that_stands_still_is_killed(
    fields: RouterSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_process, "SILENCE_S", 2.0)
    process = await RouterProcess.start(fields, tmp_path / "router.log")
    pid = await pid_of(process)
    assert isinstance(await event(process), RouterReady)
    os.kill(pid, signal.SIGSTOP)
    ended = await event(process)
    assert isinstance(ended, Ended)
    assert ended.reason == "router_silent: it gave no sign of life for 2 s and was killed"


async def test_a_stop_without_grace_kills(fields: RouterSpec, tmp_path: Path) -> None:
    process = await RouterProcess.start(fields, tmp_path / "router.log")
    pid = await pid_of(process)
    await process.stop(0)
    assert isinstance(await event(process), Ended)
    assert ProcessIdentity.of(pid) is None


async def test_a_router_does_not_outlive_its_parent(fields: RouterSpec, tmp_path: Path) -> None:
    """The parent is a process of its own, killed without a chance to clean up."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from cluster.router_process import *\n"
        "from core.config.models import BatonConfig, RouterConfig\n"
        "async def main(run_dir):\n"
        "    config = BatonConfig(router=RouterConfig(port=0))\n"
        "    fields = RouterSpec.from_config(config, membership_address='127.0.0.1:1', run_dir=run_dir, token='')\n"
        "    process = await RouterProcess.start(fields, Path(run_dir) / 'router.log')\n"
        "    while True:\n"
        "        print(await process.next_event(), flush=True)\n"
        "asyncio.run(main(sys.argv[1]))\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(tmp_path)), stdout=subprocess.PIPE, cwd=CHECKOUT
    )
    assert parent.stdout is not None
    async with asyncio.timeout(WAIT_S):
        spawned = (await parent.stdout.readline()).decode()
        assert b"RouterReady" in await parent.stdout.readline()
    child = os.pidfd_open(int(spawned.partition("pid=")[2].strip(")\n")))
    try:
        parent.kill()
        await parent.wait()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(child, ended.set)
        async with asyncio.timeout(WAIT_S):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(child)
    finally:
        os.close(child)
