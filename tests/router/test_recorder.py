"""What is recorded of live traffic: every request once, no text, in bounded files, and how it was served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.errors import ConfigError
from core.policy.context import PolicyContext
from core.recording import BLOCK_TOKENS, MAX_BLOCKS, Recorded, request_of, setting_of
from core.types import ClusterView, Role
from router.prompt_pieces import completion_pieces
from router.recorder import MAX_WAITING_BYTES, TrafficRecorder
from tests.support.records import VIEW, begun, life, routed, streamed
from tests.support.router_site import Site

PROMPT = {"prompt": "the sea was calm " * 80, "max_tokens": 5, "stream": True}
WAIT_S = 20.0


class Recording:
    """A recorder, and what it is told of the cluster."""

    def __init__(self, path: Path, max_bytes: int = 1 << 20) -> None:
        self.context, self.view = PolicyContext(), VIEW
        self.path = path
        self.recorder = TrafficRecorder(
            path,
            max_bytes,
            policy="slo-aware",
            context=lambda: self.context,
            view=lambda: self.view,
            clock=lambda: 11.0,
            wall=lambda: 1001.0,
        )

    async def lines(self) -> list[dict[str, Any]]:
        await self.recorder.write()
        return [json.loads(line) for line in (await asyncio.to_thread(self.path.read_text)).splitlines()]


@pytest.fixture
async def recording(tmp_path: Path) -> AsyncIterator[Recording]:
    made = Recording(tmp_path / "traffic.jsonl")
    yield made
    await made.recorder.close()


async def test_a_request_is_recorded_with_how_it_was_served(recording: Recording) -> None:
    recording.recorder.ended(streamed(routed(begun())), life())
    setting, request = await recording.lines()
    told = setting_of(setting)
    assert (told.at_s, told.policy, told.context) == (1001.0, "slo-aware", PolicyContext())
    assert [(w.worker_id, w.role, w.devices) for w in told.workers] == [
        ("decode-0", Role.DECODE, 1),
        ("decode-1", Role.DECODE, 1),
        ("prefill-0", Role.PREFILL, 1),
    ]
    assert request_of(request) == Recorded(
        1000.0, 512, 20, "chat", "ok", True, 0.08, 0.02, 0.46, "prefill-0", "decode-0", False
    )


async def test_what_was_not_answered_gets_the_length_that_its_class_has(recording: Recording) -> None:
    recording.recorder.ended(streamed(routed(begun()), tokens=20), life())
    refused = begun("r2")
    refused.ended(10.01, first_s=None)
    refused.outcome, refused.kept = "rejected", False
    recording.recorder.ended(refused, life())
    request = request_of((await recording.lines())[-1])
    assert (request.outcome, request.kept, request.is_guessed) == ("rejected", False, True)
    assert request.output_tokens == round(128 + (20 - 128) / 32)


async def test_changes_of_the_cluster_are_told_once(recording: Recording) -> None:
    recording.recorder.ended(streamed(routed(begun())), life())
    await recording.lines()
    recording.view = ClusterView(VIEW.workers[:2])
    await recording.lines()
    recording.context = PolicyContext(mean_output_tokens=7.0)
    await recording.lines()
    settings = [setting_of(line) for line in await recording.lines() if "event" in line]
    assert [(len(s.workers), s.context.mean_output_tokens) for s in settings] == [(3, 128.0), (2, 128.0), (2, 7.0)]


async def test_equal_beginnings_have_equal_hashes_that_differ_between_recorders(tmp_path: Path) -> None:
    def hashes(recorder: TrafficRecorder, text: str) -> tuple[int, ...]:
        return recorder._hashes(completion_pieces({"prompt": text, "model": "m"}, "").pieces)

    one, other = Recording(tmp_path / "a").recorder, Recording(tmp_path / "b").recorder
    beginning = "the sea was calm " * 1000
    a, b = hashes(one, beginning + "and still " * 400), hashes(one, beginning + "and wild  " * 400)
    shared = sum(x == y for x, y in zip(a, b, strict=True))
    assert 0 < shared < len(a) <= MAX_BLOCKS
    assert a[:shared] == b[:shared]
    assert not set(a[shared:]) & set(b[shared:])
    assert shared * BLOCK_TOKENS <= len(beginning) / 4
    assert not set(a) & set(hashes(other, beginning + "and still " * 400))
    assert len(set(a)) == len(a)
    await one.close()
    await other.close()


async def test_the_file_and_the_one_before_it_are_bounded(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "traffic.jsonl", max_bytes=40_000)
    for number in range(1000):
        recording.recorder.ended(streamed(routed(begun(f"r{number}"))), life())
        if number % 50 == 0:
            await recording.recorder.write()
    await recording.recorder.close()
    files = [tmp_path / "traffic.jsonl", tmp_path / "traffic.jsonl.1"]
    for file in files:
        assert file.stat().st_size < 25_000
        first, *others = [json.loads(line) for line in file.read_text().splitlines()]
        assert first["event"] == "setting"
        assert others
        assert all("input_length" in line for line in others)
        assert file.stat().st_mode & 0o077 == 0


async def test_a_slow_disk_costs_records_not_memory(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    record, ended = streamed(routed(begun())), life()
    while not recording.recorder._skipped:
        recording.recorder.ended(record, ended)
    assert recording.recorder._waiting_bytes < MAX_WAITING_BYTES + 1000
    await recording.recorder.write()
    assert "1 requests are not in it" in caplog.text
    recording.recorder.ended(record, ended)
    assert len(await recording.lines()) > 1000


async def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"router\.record: .* cannot be written"):
        Recording(tmp_path / "nowhere" / "traffic.jsonl")


async def test_a_router_records_no_text(tmp_path: Path) -> None:
    site = Site()
    await site.start_router(record="traffic.jsonl", run_dir=str(tmp_path))
    await site.add_worker("prefill-0")
    await site.add_worker("decode-0")
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
        for _ in range(3):
            await client.post("/v1/completions", json=PROMPT, headers={"x-request-id": "secret-name"})
        await client.post("/v1/completions", content=b"{")
        await client.get("/v1/models")
    await site.stop()
    text = (tmp_path / "traffic.jsonl").read_text()
    for word in ("sea", "calm", "secret-name"):
        assert word not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [w.worker_id for w in setting_of(lines[0]).workers] == ["decode-0", "prefill-0"]
    found = [request_of(line) for line in lines if "event" not in line]
    assert [(r.outcome, r.output_tokens, r.decode) for r in found] == [("ok", 5, "decode-0")] * 3
    assert found[0].hashes == found[1].hashes != ()
