"""One real engine in a worker process of its own, for the whole test session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.launch import WorkerProcess
from cluster.reply import Reply
from cluster.session_client import WorkerSession
from core.engine import HttpCall
from core.types import Leg, Role, WorkerState
from core.worker_spec import EngineSpec, KVSpec, WorkerSpec
from engine.demo_model.random_model import make_preset, make_random_lora

START_S = 240.0
STATE_S = 10.0
JSON = (("content-type", "application/json"),)


@dataclass(slots=True)
class RunningEngine:
    """A worker process, and a session to it."""

    process: WorkerProcess
    session: WorkerSession
    changed: asyncio.Event  # set whenever the session heard something

    def submit(self, path: str, body: object, method: str = "POST") -> Reply:
        """Send one whole call."""
        data = b"" if body is None else json.dumps(body).encode()
        return self.session.submit(Leg.WHOLE, HttpCall("req-1", method, path, JSON, data), None)

    async def ask(self, path: str, body: object, method: str = "POST") -> tuple[int, bytes]:
        """Send one whole call and read all of its reply."""
        reply = self.submit(path, body, method)
        status, _ = await reply.head()
        data = b""
        while part := await reply.read():
            data += part
        return status, data

    async def until(self, holds: Callable[[WorkerState], bool]) -> None:
        """Wait until the worker's state satisfies `holds`."""
        async with asyncio.timeout(STATE_S):
            while not holds(self.session.state):
                self.changed.clear()
                await self.changed.wait()


def worker_spec(run_dir: Path, model: Path, name: str, adapters: Iterable[tuple[str, str]] = ()) -> WorkerSpec:
    """Describe a small one-pool worker in float32, in which equal requests give equal tokens."""
    engine = EngineSpec(
        kind="vllm",
        model_path=str(model),
        served_model_name="tiny",
        dtype="float32",
        max_model_len=2048,
        kv_cache_bytes=64 << 20,
        lora_adapters=tuple(adapters),
        extra_args=("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    )
    return WorkerSpec(name, Role.DECODE, 1, "127.0.0.1", str(run_dir), engine, kv=KVSpec(transport="none"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_preset(tmp_path_factory.mktemp("models") / "tiny", "tiny", seed=1, dtype="float32")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerProcess]:
    run_dir = tmp_path_factory.mktemp("engine")
    adapter = make_random_lora(run_dir / "adapter", model, rank=8, seed=2)
    spec = worker_spec(run_dir, model, "w", [("poet", str(adapter))])
    process = await WorkerProcess.start(spec, log_path=run_dir / "worker.log")
    try:
        await process.ready(START_S)
        yield process
    finally:
        await process.stop(20)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(worker: WorkerProcess) -> AsyncIterator[RunningEngine]:
    """Give the shared worker with a session of the module's own: some tests keep its event loop for too long."""
    changed = asyncio.Event()
    session = WorkerSession(await worker.ready(START_S), token="", on_change=changed.set)
    await session.connect(10)
    yield RunningEngine(worker, session, changed)
    await session.close()
