"""Plain HTTP calls to an OpenAI-compatible server, and its answers without what differs by nature (ids, times)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

TIMEOUT_S = 120.0
# Decode computes the last prompt token alone, one pool computes it in a chunk: float32 sums differ in the last digits.
LOGPROB_TOLERANCE = 1e-4
Json = dict[str, Any]
_BY_NATURE = ("id", "created", "request_id", "system_fingerprint")


@dataclass
class Streamed:
    """A streamed answer, gathered by choice index: how tokens were grouped into events does not matter."""

    choices: dict[int, Json] = field(default_factory=dict)
    usage: Json | None = None
    errors: list[Json] = field(default_factory=list)
    done: bool = False
    num_events: int = 0


def post(url: str, path: str, body: Json, **headers: str) -> tuple[int, Json]:
    """Send one request without streaming; return status and body."""
    with httpx.Client(timeout=TIMEOUT_S) as client:
        response = client.post(url + path, json=body, headers=headers)
    return response.status_code, response.json()


def strip(answer: Json) -> Json:
    """Drop what differs between two servers by nature, at any depth (tool calls have ids too)."""
    return {key: _stripped(value) for key, value in answer.items() if key not in _BY_NATURE}


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return strip(value)
    return [_stripped(item) for item in value] if isinstance(value, list) else value


def assert_same(ours: Any, expected: Any, where: str = "answer") -> None:
    """Compare two answers: everything equal, but log probabilities within LOGPROB_TOLERANCE."""
    if isinstance(ours, dict) and isinstance(expected, dict):
        assert ours.keys() == expected.keys(), where
        for key in ours:
            assert_same(ours[key], expected[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(expected, list):
        assert len(ours) == len(expected), where
        for index, (one, other) in enumerate(zip(ours, expected, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(ours, float) and isinstance(expected, float):
        assert abs(ours - expected) <= LOGPROB_TOLERANCE, f"{where}: {ours} != {expected}"
    else:
        assert ours == expected, f"{where}: {ours!r} != {expected!r}"


def stream(url: str, path: str, body: Json) -> Streamed:
    """Send one streaming request and gather its events. Raises AssertionError on a status other than 200."""
    gathered = Streamed()
    with (
        httpx.Client(timeout=TIMEOUT_S) as client,
        client.stream("POST", url + path, json={**body, "stream": True}) as response,
    ):
        if response.status_code != 200:
            raise AssertionError(f"status {response.status_code}: {response.read()!r}")
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                take(gathered, line.removeprefix("data: "))
    return gathered


def take(gathered: Streamed, data: str) -> None:
    assert not gathered.done, f"event after [DONE]: {data}"
    if data == "[DONE]":
        gathered.done = True
        return
    event = json.loads(data)
    gathered.num_events += 1
    if "error" in event:
        gathered.errors.append(event["error"])
        return
    if event.get("usage"):
        gathered.usage = event["usage"]
    for choice in event.get("choices", ()):
        _merge(gathered.choices.setdefault(choice["index"], {}), choice)


def _merge(into: Json, new: Json) -> None:
    """Add a delta to what was gathered: text and lists grow, objects merge, scalars are kept once they come."""
    for key, value in new.items():
        if key in _BY_NATURE or value is None:
            continue
        known = into.get(key)
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        elif isinstance(value, list) and value and isinstance(value[0], dict) and "index" in value[0]:
            for item in value:
                _merge(into.setdefault(key, {}).setdefault(item["index"], {}), item)
        elif isinstance(value, list):
            into[key] = (known or []) + value
        elif isinstance(value, str) and isinstance(known, str) and key in ("text", "content", "arguments"):
            into[key] = known + value
        else:
            into[key] = value
