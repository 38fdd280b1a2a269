"""A streaming client for scripts that await each request: sends completions, notes when each token event arrives.

Owns prompts of exact length and the pace of a list of coroutines. Sockets and timings are those of bench.serving. Must
not know which system it talks to.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from bench.serving.connection import ConnectionPool
from bench.serving.document import ask, request_of
from bench.serving.endpoint import Endpoint, endpoint
from bench.serving.openai_requests import COMPLETIONS, Api
from bench.serving.timing import RESERVATION, StreamedAnswer, Timing

__all__ = ["LoadSession", "Prompts", "Timing", "open_loop", "open_session", "quantile", "stream_completion"]


class Prompts:
    """Prompts of exact token counts that share no prefix, as token ids."""

    def __init__(self, seed: int, *, low: int = 300, high: int = 2000) -> None:
        self._random = random.Random(seed)
        self._range = (low, high)

    def make(self, tokens: int) -> list[int]:
        """Make the next prompt."""
        return [self._random.randrange(*self._range) for _ in range(tokens)]


class LoadSession:
    """Connections to the servers that are asked."""

    def __init__(self) -> None:
        self._pools: dict[str, tuple[Endpoint, ConnectionPool]] = {}

    def reach(self, url: str) -> tuple[Endpoint, ConnectionPool]:
        """Give the connections to a server."""
        if url not in self._pools:
            found = endpoint(url)
            self._pools[url] = found, ConnectionPool(found)
        return self._pools[url]

    async def text(self, url: str, path: str) -> str:
        """Read a page. Raises BatonError when none comes."""
        where, pool = self.reach(url)
        return (await ask(pool, where, path)).body.decode(errors="replace")

    async def close(self) -> None:
        """Close all connections."""
        for _, pool in self._pools.values():
            await pool.close()


@asynccontextmanager
async def open_session() -> AsyncIterator[LoadSession]:
    """Open a client session without a limit of connections."""
    session = LoadSession()
    try:
        yield session
    finally:
        await session.close()


async def stream_completion(
    session: LoadSession,
    url: str,
    prompt: Sequence[int],
    *,
    model: str,
    max_tokens: int,
    timeout_s: float = 120.0,
    leave_after: int | None = None,
    reservation: str = "",
) -> Timing:
    """Send one greedy completion and gather its token times; `leave_after` token events the client hangs up."""
    where, pool = session.reach(url)
    body = Api(model).body("", max_tokens) | {"prompt": list(prompt)}
    headers = {RESERVATION: reservation} if reservation else {}
    ended: asyncio.Future[Timing] = asyncio.get_running_loop().create_future()
    request = request_of(where, COMPLETIONS, body, headers)

    def done(timing: Timing) -> None:
        if not ended.done():
            ended.set_result(timing)

    timing = Timing(time.perf_counter(), prompt_tokens=len(prompt))
    pool.send(request, StreamedAnswer(timing, done, leave_after=leave_after), timeout_s)
    return await ended


async def open_loop(arrivals_s: Sequence[float], send: Callable[[int], Awaitable[Timing]]) -> list[Timing]:
    """Send request i at arrivals_s[i] seconds from now, however slow the server is; return all timings in order."""
    start_s = time.perf_counter()

    async def one(index: int) -> Timing:
        await asyncio.sleep(max(0.0, arrivals_s[index] - (time.perf_counter() - start_s)))
        return await send(index)

    return list(await asyncio.gather(*(one(index) for index in range(len(arrivals_s)))))


def quantile(values: Sequence[float], q: float) -> float:
    """Interpolated quantile of unsorted values; nan when there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    place = (len(ordered) - 1) * q
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
