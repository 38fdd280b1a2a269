"""The log can be replayed whatever happens to it: files change, the disk is slow, the disk is full."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from io import FileIO
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.policy.context import PolicyContext
from core.policy.registry import policy_named
from core.types import ClusterView, RequestShape, Role
from router import event_log
from router.event_log import EventLog
from sim.replay import Replay, replay
from tests.support.contexts import context
from tests.support.views import worker

POLICY = "least-predicted-work"


def view(step: int) -> ClusterView:
    """Workers whose load moves with the steps; one of them comes and goes."""
    decode = [worker(f"d{i}", Role.DECODE, num_running=step * (i + 3) % 7) for i in range(3)]
    prefill = [worker(f"p{i}", Role.PREFILL, tokens=100 * (step * (i + 2) % 5)) for i in range(2)]
    return ClusterView((*(decode if step % 3 else decode[1:]), *prefill))


class Writer:
    """Takes decisions and notes them."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.log = EventLog(path, policy=POLICY, context=PolicyContext(), **limits)
        self.count = 0

    def decide(self, times: int) -> None:
        policy = policy_named(POLICY)
        for _ in range(times):
            shape = RequestShape(f"r{self.count}", 100, None, "interactive", sequence=self.count)
            now, at_s, excluded = view(self.count), self.count / 3, {"d1"} if self.count % 5 == 0 else set()
            self.count += 1
            self.log.decided(shape, excluded, now, at_s, policy.decide(shape, now.without(excluded), at_s))


async def test_what_is_written_is_decided_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.decide(100)
    await writer.log.close()
    assert replay(tmp_path / "events.jsonl") == Replay(100, 0, (), skipped=0, missing=0)


async def test_a_policy_that_is_made_anew_is_made_anew_in_the_replay(tmp_path: Path) -> None:
    path, at_s = tmp_path / "events.jsonl", 0.0
    log = EventLog(path, policy="slo-aware", context=PolicyContext())
    for sequence, known in enumerate((PolicyContext(), context(), context(mean_output_tokens=300.0))):
        if sequence:
            log.reopened(known)
        shape = RequestShape(f"r{sequence}", 700, None, "interactive", sequence=sequence)
        decision = policy_named("slo-aware", known).decide(shape, view(1), at_s)
        log.decided(shape, (), view(1), at_s, decision)
    await log.close()
    found = replay(path)
    assert found == Replay(decisions=3, num_differing=0, differing=(), skipped=0, missing=0)


async def test_a_router_that_starts_again_keeps_the_file_before(tmp_path: Path) -> None:
    for times in (10, 20):
        writer = Writer(tmp_path / "events.jsonl")
        writer.decide(times)
        await writer.log.close()
    assert replay(tmp_path / "events.jsonl").decisions == 20
    assert replay(tmp_path / "events.jsonl.1").decisions == 10


async def test_size_is_bound_and_each_file_stands_alone(tmp_path: Path) -> None:
    limit = 20_000
    writer = Writer(tmp_path / "events.jsonl", max_file_bytes=limit)
    writer.decide(200)
    await writer.log.close()
    files = [tmp_path / name for name in sorted(os.listdir(tmp_path))]
    assert [file.name for file in files] == ["events.jsonl", "events.jsonl.1"]
    assert all(0 < file.stat().st_size < limit + 5_000 for file in files)
    newest, before = (replay(file) for file in files)
    assert newest.agrees
    assert before.agrees
    assert newest.decisions + before.decisions < 200


async def test_only_the_owner_may_read(tmp_path: Path) -> None:
    await Writer(tmp_path / "events.jsonl").log.close()
    assert stat.S_IMODE((tmp_path / "events.jsonl").stat().st_mode) == 0o600


async def test_memory_is_bound_and_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(tmp_path / "events.jsonl", max_waiting_bytes=30_000)
    writer.decide(500)  # nothing is written meanwhile
    await writer.log.write()
    writer.decide(20)
    await writer.log.close()
    found = replay(tmp_path / "events.jsonl")
    assert found.agrees
    assert found.skipped > 300
    assert found.decisions + found.skipped == 520
    assert [record.message for record in caplog.records] == ["the event log cannot keep up and leaves decisions out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
async def test_a_full_disk_ends_the_log_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(Path("/dev/full"))
    writer.decide(5)
    await writer.log.write()
    writer.decide(5)
    await writer.log.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "No space left on device" in caplog.text


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"router\.event_log: .*nowhere"):
        EventLog(tmp_path / "nowhere" / "events.jsonl", policy=POLICY, context=PolicyContext())


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="it is a pipe"):
        EventLog(tmp_path / "pipe", policy=POLICY, context=PolicyContext())


async def test_nothing_follows_a_line_that_could_not_be_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.decide(5)
    whole = event_log.write_all

    def fill_the_disk(file: FileIO, data: bytes) -> None:
        whole(file, data[:-40])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(event_log, "write_all", fill_the_disk)
    writing = asyncio.create_task(writer.log.write())
    await asyncio.sleep(0)
    writing.cancel()  # as when the router stops while its disk is busy
    await asyncio.gather(writing, return_exceptions=True)
    writer.decide(5)
    await asyncio.get_running_loop().run_in_executor(writer.log._writer, lambda: None)  # that write is over
    monkeypatch.setattr(event_log, "write_all", whole)  # and there is room again
    await writer.log.close()
    assert replay(tmp_path / "events.jsonl").decisions == 4
