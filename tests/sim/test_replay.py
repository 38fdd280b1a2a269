"""One policy, two drivers: what a live router decided, the log and the policy decide again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.errors import ConfigError
from core.policy.context import PolicyContext
from core.policy.registry import policy_named
from core.types import Route
from sim.replay import replay
from tests.support.contexts import context
from tests.support.router_site import Site

NUM_REQUESTS = 240
PROMPT = "the sea was calm and the ship lay still"
Lines = list[dict[str, Any]]


async def drive(site: Site) -> None:
    """Put load on two prefill and two decode workers while the cluster changes under it."""
    for worker_id in ("prefill-0", "prefill-1", "decode-0", "decode-1"):
        await site.add_worker(worker_id)
    async with httpx.AsyncClient(base_url=site.url, timeout=20) as client:

        async def ask(number: int) -> None:
            body = {"prompt": PROMPT * (1 + number % 7), "max_tokens": 2 + number % 9, "stream": number % 2 == 0}
            if number % 11 == 0:
                body["n"] = 2
            await client.post("/v1/completions", json=body)

        async def ask_some(first: int, *, changes: Callable[[], Any]) -> None:
            asked = [asyncio.create_task(ask(first + i)) for i in range(NUM_REQUESTS // 4)]
            await site.until(lambda: site.router.dispatcher.num_inflight > 0)
            await changes()
            await asyncio.gather(*asked)

        async def nothing() -> None:
            pass

        async def withdraw() -> None:
            site.announced.set(*(w.record for name, w in site.workers.items() if name != "prefill-1"))

        await ask_some(0, changes=nothing)
        await ask_some(60, changes=lambda: site.add_worker("decode-2"))
        await ask_some(120, changes=site.workers["decode-0"].kill)
        await ask_some(180, changes=withdraw)


def read(log: Path) -> Lines:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("policy", "known"),
    [
        ("least-predicted-work", PolicyContext()),
        ("slo-aware", context(admit_by_ttft=True, whole_below_tokens=20)),
        ("round-robin", PolicyContext()),
    ],
)
async def test_a_live_run_is_decided_again(policy: str, known: PolicyContext, tmp_path: Path) -> None:
    site = Site()
    log = tmp_path / "events.jsonl"
    await site.start_router(policy=policy, policy_context=known, run_dir=str(tmp_path), event_log=log.name)
    try:
        await drive(site)
    finally:
        await site.stop()
    lines = read(log)
    kinds = {line["event"] for line in lines}
    assert {"log", "worker", "load", "left", "decision"} <= kinds
    decisions = [line for line in lines if line["event"] == "decision"]
    assert any(line["excluded"] == ["decode-0"] for line in decisions), "nothing was retried"
    assert PROMPT not in log.read_text()

    found = replay(log)
    assert found.differing == ()
    assert found.agrees
    assert found.decisions == len(decisions) >= NUM_REQUESTS
    assert found.skipped == 0


@pytest.fixture
async def log(tmp_path: Path) -> Path:
    """The log of a short run, all requests one after another."""
    site = Site()
    await site.start_router(run_dir=str(tmp_path), event_log="events.jsonl")
    try:
        for worker_id in ("prefill-0", "decode-0", "decode-1"):
            await site.add_worker(worker_id)
        async with httpx.AsyncClient(base_url=site.url, timeout=20) as client:
            for _ in range(6):
                await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1})
    finally:
        await site.stop()
    return tmp_path / "events.jsonl"


def rewrite(log: Path, change: Callable[[Lines], Lines]) -> None:
    log.write_text("".join(json.dumps(line) + "\n" for line in change(read(log))))


def cut_short(log: Path) -> None:
    log.write_text(log.read_text()[:-5])


def swapped_route(lines: Lines) -> Lines:
    route = [line for line in lines if line["event"] == "decision"][2]["route"]
    route["decode"] = {"decode-0": "decode-1", "decode-1": "decode-0"}[route["decode"]]
    return lines


def heavier_load(lines: Lines) -> Lines:
    taken = next(line for line in lines if line["event"] == "decision")["route"]["decode"]
    next(line for line in lines if line["event"] == "load" and line["worker"] == taken)["load"][0] = 50
    return lines


def without_a_decision(lines: Lines) -> Lines:
    third = [line for line in lines if line["event"] == "decision"][2]
    return [line for line in lines if line is not third]


async def test_the_untouched_log_agrees(log: Path) -> None:
    found = replay(log)
    assert (found.agrees, found.decisions) == (True, 6)


async def test_a_changed_decision_is_found(log: Path) -> None:
    rewrite(log, swapped_route)
    found = replay(log)
    assert (found.agrees, found.num_differing) == (False, 1)
    (difference,) = found.differing
    assert isinstance(difference.logged, Route)
    assert isinstance(difference.replayed, Route)
    assert difference.logged.decode != difference.replayed.decode
    assert read(log)[difference.line - 1]["request"]["request_id"] == difference.request_id


async def test_a_changed_load_is_found(log: Path) -> None:
    rewrite(log, heavier_load)
    assert replay(log).num_differing >= 1


async def test_a_missing_decision_is_found(log: Path) -> None:
    rewrite(log, without_a_decision)
    found = replay(log)
    assert (found.agrees, found.missing, found.num_differing) == (False, 1, 0)


async def test_a_missing_worker_is_an_error_at_its_line(log: Path) -> None:
    rewrite(log, lambda lines: [line for line in lines if line["event"] != "worker"])
    with pytest.raises(ConfigError, match=r"events\.jsonl:2: worker '.*' has not joined"):
        replay(log)


async def test_another_policy_decides_otherwise(log: Path) -> None:
    found = replay(log, policy_named("random"))
    assert found.decisions == 6
    assert found.num_differing == 6  # the reasons differ at least


async def test_a_line_without_its_end_is_not_read(log: Path) -> None:
    cut_short(log)
    found = replay(log)
    assert (found.agrees, found.decisions) == (True, 5)


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"event": "dance"}',
        b'{"event": "left", "worker": []}',
        b'{"event": "load", "worker": "p", "load": ["many"' + b", 0" * 11 + b"]}",
    ],
    ids=lambda line: line[-24:].decode(errors="replace"),
)
def test_what_is_no_log_is_refused(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    file.write_bytes(line + b"\n")
    with pytest.raises(ConfigError, match=r"other\.txt:1: "):
        replay(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.jsonl: the event log cannot be read"):
        replay(tmp_path / "nothing.jsonl")
