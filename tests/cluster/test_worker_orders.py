"""Orders on standard input are obeyed in a process of their own; see test_launch for the whole worker."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cluster.launch import WorkerProcess
from core.types import Role
from core.worker_spec import EngineSpec, WorkerSpec

READY_S = 60.0
END_S = 30.0


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    engine = EngineSpec(kind="simulated", model_path=str(tmp_path), served_model_name="m")
    return WorkerSpec("decode-0", Role.DECODE, 3, "127.0.0.1", str(tmp_path), engine)


async def test_the_latest_of_several_roles_is_taken_once(spec: WorkerSpec, tmp_path: Path) -> None:
    roles: list[object] = []
    told = asyncio.Event()

    def take(event: object) -> None:
        assert isinstance(event, dict)
        if event["event"] == "role":
            roles.append(event["hello"]["role"])
            if roles[-1] == "prefill":  # a process that was quick took the first one, too
                told.set()

    process = await WorkerProcess.start(spec, log_path=tmp_path / "log", on_event=take)
    try:
        await process.ready(READY_S)
        process.take_role(Role.DECODE, 0.0)
        process.take_role(Role.PREFILL, 0.0)
        async with asyncio.timeout(END_S):
            await told.wait()
        process.drain(0.0)
        async with asyncio.timeout(END_S):
            assert await process.exited() == 0
        assert roles[-1] == "prefill"
        assert roles.count("prefill") == 1
    finally:
        process.kill()


async def test_what_it_does_not_understand_is_ignored(spec: WorkerSpec, tmp_path: Path) -> None:
    process = await WorkerProcess.start(spec, log_path=tmp_path / "log")
    try:
        await process.ready(READY_S)
        process._child.tell({"command": "dance"})
        process.drain(None)
        async with asyncio.timeout(END_S):
            assert await process.exited() == 0
        assert any("unknown order ignored" in line for line in process.last_log_lines(20))
    finally:
        process.kill()


async def test_one_that_has_ended_is_told_nothing(spec: WorkerSpec, tmp_path: Path) -> None:
    process = await WorkerProcess.start(spec, log_path=tmp_path / "log")
    await process.ready(READY_S)
    open_before = len(os.listdir("/proc/self/fd"))
    process.kill()
    async with asyncio.timeout(END_S):
        await process.exited()
    process.drain(None)
    assert len(os.listdir("/proc/self/fd")) < open_before
