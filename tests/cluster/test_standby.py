"""A process that stands by becomes the next life of its worker, and of no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import standby
from cluster.launch import WorkerProcess
from cluster.standby import Standby
from core.types import Role
from core.worker_spec import EngineSpec, WorkerSpec
from tests.support.ray_processes import is_alive

READY_S = 60.0


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    engine = EngineSpec(kind="simulated", model_path=str(tmp_path), served_model_name="m")
    return WorkerSpec("decode-0", Role.DECODE, 1, "127.0.0.1", str(tmp_path), engine, has_standby=True)


class Worker:
    """Lives of one worker, with what stands by."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "worker.log"
        self.standby = Standby()
        self.process: WorkerProcess

    async def live(self, spec: WorkerSpec) -> int:
        """Run its next life until it is ready; return its process id."""
        self.process = await self.standby.become(spec, self.log, lambda event: None)
        assert (await self.process.ready(READY_S)).epoch == spec.epoch
        return self.process.pid

    async def prepared(self, spec: WorkerSpec) -> int:
        """Wait for a process to stand by; return its id."""
        self.standby.prepare(spec)
        assert self.standby._preparing is not None
        async with asyncio.timeout(READY_S):
            await self.standby._preparing
        assert self.standby._process is not None
        return self.standby._process.pid

    async def end(self) -> None:
        self.process.kill()
        async with asyncio.timeout(READY_S):
            await self.process.exited()


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setattr(standby, "DELAY_S", 0.0)
    made = Worker(tmp_path)
    yield made
    await made.end()
    waiting = made.standby._process
    made.standby.end()
    if waiting is not None:
        async with asyncio.timeout(READY_S):
            await waiting.exited()


async def test_what_stands_by_becomes_the_next_life(worker: Worker, spec: WorkerSpec) -> None:
    first = await worker.live(spec)
    waiting = await worker.prepared(spec)
    await worker.end()
    assert await worker.live(replace(spec, epoch=2, role=Role.PREFILL)) == waiting != first
    assert worker.process.record is not None
    assert worker.process.record.role is Role.PREFILL
    worker.process.drain(None)  # it takes orders as any other
    async with asyncio.timeout(READY_S):
        assert await worker.process.exited() == 0


@pytest.mark.parametrize("change", [{"revision": "other"}, {"cpus": (0,)}, {"token": "new"}], ids=str)
async def test_it_does_not_become_a_worker_of_other_settings(
    worker: Worker, spec: WorkerSpec, change: dict[str, str]
) -> None:
    await worker.live(spec)
    waiting = await worker.prepared(spec)
    await worker.end()
    assert await worker.live(replace(spec, epoch=2, **change)) != waiting  # type: ignore[arg-type]
    assert worker.standby._process is None


async def test_one_that_died_while_it_waited_is_not_missed(worker: Worker, spec: WorkerSpec) -> None:
    await worker.live(spec)
    waiting = await worker.prepared(spec)
    assert worker.standby._process is not None
    worker.standby._process.kill()
    await worker.standby._process.exited()
    assert not is_alive(waiting)
    await worker.end()
    assert await worker.live(replace(spec, epoch=2)) != waiting


async def test_a_worker_that_wants_none_has_none(worker: Worker, spec: WorkerSpec) -> None:
    await worker.live(spec)
    worker.standby.prepare(replace(spec, has_standby=False))
    assert worker.standby._preparing is None
