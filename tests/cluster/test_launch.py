"""A worker process is started, heard and ended, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.launch import WorkerProcess
from cluster.session_client import WorkerSession
from core.engine import HttpCall
from core.errors import StartFailed, WorkerLost
from core.types import Leg, Role, WorkerRecord
from core.worker_spec import EngineSpec, WorkerSpec
from tests.support.certificates import Authority

CHECKOUT = Path(__file__).resolve().parents[2]
READY_S = 60.0
END_S = 20.0


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    engine = EngineSpec(kind="simulated", model_path=str(tmp_path), served_model_name="m")
    return WorkerSpec("decode-0", Role.DECODE, 3, "127.0.0.1", str(tmp_path), engine, token="secret")


@pytest.fixture
async def started(spec: WorkerSpec, tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    process = await WorkerProcess.start(spec, log_path=tmp_path / "worker.log")
    yield process
    process.kill()
    async with asyncio.timeout(END_S):
        await process.exited()


async def test_a_ready_worker_is_what_its_spec_says(started: WorkerProcess, spec: WorkerSpec) -> None:
    record = await started.ready(READY_S)
    assert record == WorkerRecord("decode-0", Role.DECODE, 3, record.address, os.uname().nodename)
    session = WorkerSession(record, token=spec.token, on_change=lambda: None)
    try:
        assert await session.connect(10) == started.hello
        call = HttpCall("r", "GET", "/v1/models", (), b"")
        async with asyncio.timeout(10):
            assert (await session.submit(Leg.WHOLE, call, None).head())[0] == 200
    finally:
        await session.close()


async def test_a_worker_with_a_certificate_is_reached_by_its_like_only(spec: WorkerSpec, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    spec = replace(spec, tls=authority.component("worker"))
    process = await WorkerProcess.start(spec, log_path=tmp_path / "worker.log")
    try:
        record = await process.ready(READY_S)
        plain = WorkerSession(record, token=spec.token, on_change=lambda: None)
        with pytest.raises(WorkerLost, match="same security section"):
            await plain.connect(END_S)
        tls = authority.component("router").for_clients()
        session = WorkerSession(record, token=spec.token, on_change=lambda: None, tls=tls)
        assert await session.connect(END_S) == process.hello
        await session.close()
    finally:
        process.kill()
        async with asyncio.timeout(END_S):
            await process.exited()


async def test_a_missing_certificate_fails_the_start_before_the_engine(spec: WorkerSpec, tmp_path: Path) -> None:
    tls = replace(Authority(tmp_path).component("worker"), cert=str(tmp_path / "none"))
    events: list[Mapping[str, object]] = []
    process = await WorkerProcess.start(
        replace(spec, tls=tls), log_path=tmp_path / "worker.log", on_event=events.append
    )
    with pytest.raises(StartFailed, match=r"security\.cert: there is no file"):
        await process.ready(READY_S)
    assert [event["event"] for event in events] == ["failed"]


async def test_events_come_in_order(spec: WorkerSpec, tmp_path: Path) -> None:
    events: list[Mapping[str, object]] = []
    process = await WorkerProcess.start(spec, log_path=tmp_path / "worker.log", on_event=events.append)
    await process.ready(READY_S)
    assert await process.stop(END_S) == 0
    assert [(e["event"], e.get("name")) for e in events] == [
        ("stage", "engine"),
        ("stage", "serving"),
        ("ready", None),
        ("draining", None),
    ]


async def test_a_worker_takes_another_role_and_goes_on(spec: WorkerSpec, tmp_path: Path) -> None:
    events: list[Mapping[str, object]] = []
    told = asyncio.Event()

    def take(event: Mapping[str, object]) -> None:
        events.append(event)
        if event["event"] == "role":
            told.set()

    process = await WorkerProcess.start(spec, log_path=tmp_path / "worker.log", on_event=take)
    record = await process.ready(READY_S)
    process.take_role(Role.PREFILL, 5.0)
    async with asyncio.timeout(READY_S):
        await told.wait()
    assert process.record == replace(record, role=Role.PREFILL)
    session = WorkerSession(process.record, token=spec.token, on_change=lambda: None)
    try:
        assert (await session.connect(10)).role is Role.PREFILL
    finally:
        await session.close()
    process.drain(None)
    async with asyncio.timeout(END_S):
        assert await process.exited() == 0


async def test_a_drained_worker_finishes_what_runs_and_ends(started: WorkerProcess, spec: WorkerSpec) -> None:
    record = await started.ready(READY_S)
    session = WorkerSession(record, token=spec.token, on_change=lambda: None)
    body = b'{"model": "m", "prompt": "p", "max_tokens": 40, "stream": true}'
    call = HttpCall("r", "POST", "/v1/completions", (("content-type", "application/json"),), body)
    try:
        await session.connect(10)
        reply = session.submit(Leg.WHOLE, call, None)
        async with asyncio.timeout(END_S):
            assert (await reply.head())[0] == 200
            started.drain(None)
            data = b""
            while chunk := await reply.read():
                data += chunk
            assert data.rstrip().endswith(b"data: [DONE]")
            assert await started.exited() == 0
    finally:
        await session.close()


async def test_the_spec_file_is_private(started: WorkerProcess, spec: WorkerSpec, tmp_path: Path) -> None:
    await started.ready(READY_S)
    assert stat.S_IMODE((tmp_path / "decode-0.spec.json").stat().st_mode) == 0o600


async def test_a_worker_that_cannot_start_says_why(spec: WorkerSpec, tmp_path: Path) -> None:
    wrong = replace(spec, engine=replace(spec.engine, kind="steam"))
    process = await WorkerProcess.start(wrong, log_path=tmp_path / "worker.log")
    with pytest.raises(StartFailed) as caught:
        await process.ready(READY_S)
    assert "config_error: engine.kind is 'steam'" in str(caught.value)
    assert "end of" in str(caught.value)
    assert await process.exited() == 1
    assert any("steam" in line for line in process.last_log_lines(20))


async def test_a_worker_that_is_not_ready_in_time_is_killed(started: WorkerProcess) -> None:
    with pytest.raises(StartFailed, match="not ready after 0 s"):
        await started.ready(0)
    async with asyncio.timeout(END_S):
        assert await started.exited() == -signal.SIGKILL
    assert started.tree_pids() == ()


async def test_a_killed_worker_is_noticed(started: WorkerProcess) -> None:
    await started.ready(READY_S)
    os.kill(started.pid, signal.SIGKILL)
    async with asyncio.timeout(END_S):
        assert await started.exited() == -signal.SIGKILL
    assert started.tree_pids() == ()


async def test_stop_ends_a_worker_that_does_not_listen(started: WorkerProcess) -> None:
    await started.ready(READY_S)
    os.kill(started.pid, signal.SIGSTOP)
    assert await started.stop(0.1) == -signal.SIGKILL


async def test_stopping_twice_is_harmless(started: WorkerProcess) -> None:
    await started.ready(READY_S)
    assert await started.stop(END_S) == 0
    started.kill()
    assert await started.stop(END_S) == 0


async def test_a_worker_does_not_outlive_its_launcher(spec: WorkerSpec, tmp_path: Path) -> None:
    """The launcher is killed outright; the pipe that only the worker holds then closes."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from cluster.launch import WorkerProcess\n"
        "from core.worker_spec import WorkerSpec\n"
        "async def main():\n"
        "    spec = WorkerSpec.from_json(Path(sys.argv[1]).read_text())\n"
        "    process = await WorkerProcess.start(spec, log_path=Path(sys.argv[2]))\n"
        "    await process.ready(60)\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    spec_file = tmp_path / "given.json"
    spec_file.write_text(spec.to_json())
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    launcher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(spec_file), str(tmp_path / "worker.log")),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert launcher.stdout is not None
    async with asyncio.timeout(READY_S):
        worker_pid = int(await launcher.stdout.readline())
    pidfd = os.pidfd_open(worker_pid)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    try:
        launcher.kill()
        async with asyncio.timeout(END_S):
            await launcher.wait()
            await gone.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
