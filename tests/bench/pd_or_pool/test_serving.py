"""A stay at a server: every part is asked as drawn, and what was seen comes back from its file."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from bench.pd_or_pool.cases import CHAT, LONG, WORKLOADS
from bench.pd_or_pool.serving import Part, parts_of, read, stay
from bench.serving.endpoint import endpoint
from bench.serving.target import Target
from tests.support.http_mocks import Heard, document, served_in_thread, stream_tokens

PARTS = [Part(CHAT, 200.0, 12, 0), Part(LONG, 100.0, 8, 1)]


async def refusing_long(heard: Heard, writer: asyncio.StreamWriter) -> None:
    """Refuse prompts of more than 400 words."""
    if heard.body.get("stream") and len(str(heard.body.get("prompt")).split()) > 400:
        writer.write(document({"error": {"message": "no"}}, status=429))
    else:
        await stream_tokens(heard, writer)


def test_every_part_is_asked_and_what_was_seen_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "stay.json"
    with served_in_thread(refusing_long) as mock:
        stay(Target("a", endpoint(mock.url)), PARTS, file)
    chats, long = read(file)
    assert [(s.workload, s.rate, len(s.ttft_ms)) for s in (chats, long)] == [(CHAT, 200.0, 12), (LONG, 100.0, 8)]
    assert chats.kept(60.0, 60.0).all()
    assert not chats.kept(1e-9, 60.0).any()
    assert chats.kept(1e-9, 60.0, scale=1e12).all()
    assert all(math.isnan(value) for value in long.ttft_ms)
    assert not long.kept(60.0, 60.0).any()
    assert any("8 failed" in problem for problem in long.problems)


def test_an_interrupted_stay_keeps_its_parts_apart_from_whole_ones(tmp_path: Path) -> None:
    file = tmp_path / "stay.json"
    broken = [PARTS[0], Part("no such kind", 1.0, 1, 0)]
    with served_in_thread() as mock, pytest.raises(ValueError, match="not in tuple"):
        stay(Target("a", endpoint(mock.url)), broken, file)
    assert len(read(file.with_suffix(".interrupted"))) == 1
    assert not file.exists()


def test_parts_are_the_same_for_both_systems_and_unlike_in_every_turn() -> None:
    rates: dict[str, tuple[float, ...]] = dict.fromkeys(WORKLOADS, (0.5, 4.0))
    first, again, second = (parts_of(rates, seconds=8.0, turn=turn) for turn in (0, 0, 1))
    assert first == again
    assert [part.count for part in first] == [12, 32] * 3
    assert not {(p.workload, p.rate, p.seed) for p in first} & {(p.workload, p.rate, p.seed) for p in second}
