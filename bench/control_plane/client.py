"""Requests at a steady rate, and a look at the router's workers again and again:
`python -m bench.control_plane.client URL RATE`.

Owns what is asked, and tells every worker whose role or epoch is another as a JSON line with the time of the answer,
time.monotonic's. Must not know who changes the workers.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

LOOK_S: Final = 0.02
ANSWER_S: Final = 60.0
_PROMPT_WORDS: Final = 40
_TOKENS: Final = 8


async def ask(host: str, port: int, method: str, path: str, body: bytes = b"") -> bytes:
    """Ask once, on a connection of its own; return the answer's body."""
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            answer = await reader.read()
        finally:
            writer.close()
    return answer.partition(b"\r\n\r\n")[2]


def changes(before: dict[str, str], workers: list[dict[str, Any]]) -> dict[str, str | None]:
    """Say which workers are not as before: their role and epoch, None for one that is gone; `before` is brought up."""
    now = {w["worker_id"]: f"{w['role']} {w['epoch']}" for w in workers}
    found: dict[str, str | None] = {name: what for name, what in now.items() if before.get(name) != what}
    found |= {name: None for name in before if name not in now}
    before.clear()
    before.update(now)
    return found


async def watch(host: str, port: int) -> None:
    """Look for ever."""
    known: dict[str, str] = {}
    while True:
        workers = json.loads(await ask(host, port, "GET", "/workers"))["workers"]
        at_s = time.monotonic()
        if found := changes(known, workers):
            sys.stdout.write(json.dumps({"at_s": at_s, "workers": found}) + "\n")
            sys.stdout.flush()
        await asyncio.sleep(LOOK_S)


async def load(host: str, port: int, rate: float) -> None:
    """Ask for completions, one every 1 / `rate` seconds, whatever becomes of those before."""
    running: set[asyncio.Task[bytes]] = set()
    for number in itertools.count():
        prompt = f"{number} " + "word " * _PROMPT_WORDS
        body = json.dumps({"model": "demo", "prompt": prompt, "max_tokens": _TOKENS}).encode()
        task = asyncio.create_task(ask(host, port, "POST", "/v1/completions", body))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(1.0 / rate)


async def main(url: str, rate: float) -> None:
    """Load and look until killed."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(parts.hostname, parts.port))
        group.create_task(load(parts.hostname, parts.port, rate))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
