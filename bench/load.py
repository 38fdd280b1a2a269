"""A streaming client: sends completions, notes when each token event arrives.

Owns timestamps and prompts of exact length. Must not know which system it talks to.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
import orjson

_EVENT_END = b"\n\n"
RESERVATION = "x-baton-reservation"


@dataclass(slots=True)
class Timing:
    """One request as its client saw it; times are of time.perf_counter()."""

    sent_s: float
    tokens_s: list[float] = field(default_factory=list)  # arrival of each token event
    error: str = ""
    is_refused: bool = False  # with 429
    earliest_ms: float | None = None  # that a refusal named: when an equal request would be admitted
    reservation: str = ""  # and the token that comes with it

    @property
    def ttft_ms(self) -> float:
        """Time to first token."""
        return (self.tokens_s[0] - self.sent_s) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Mean time per output token after the first; 0 with fewer than two."""
        count = len(self.tokens_s) - 1
        return (self.tokens_s[-1] - self.tokens_s[0]) / count * 1e3 if count > 0 else 0.0

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between tokens."""
        return [(b - a) * 1e3 for a, b in zip(self.tokens_s, self.tokens_s[1:], strict=False)]

    def within(self, ttft_ms: float, tpot_ms: float) -> bool:
        """Say whether the request completed and met both targets."""
        return not self.error and bool(self.tokens_s) and self.ttft_ms <= ttft_ms and self.tpot_ms <= tpot_ms


class Prompts:
    """Prompts of exact token counts that share no prefix, as token ids."""

    def __init__(self, seed: int, *, low: int = 300, high: int = 2000) -> None:
        self._random = random.Random(seed)
        self._range = (low, high)

    def make(self, tokens: int) -> list[int]:
        """Make the next prompt."""
        return [self._random.randrange(*self._range) for _ in range(tokens)]


def open_session() -> aiohttp.ClientSession:
    """Open a client session without connection or time limits of its own."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))


async def stream_completion(
    session: aiohttp.ClientSession,
    url: str,
    prompt: Sequence[int],
    *,
    model: str,
    max_tokens: int,
    timeout_s: float = 120.0,
    leave_after: int | None = None,
    reservation: str = "",
) -> Timing:
    """Send one greedy completion and gather its token times; `leave_after` tokens the client hangs up."""
    body = orjson.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    )
    timing = Timing(time.perf_counter())
    headers = {"content-type": "application/json"} | ({RESERVATION: reservation} if reservation else {})
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.post(f"{url}/v1/completions", data=body, headers=headers) as response,
        ):
            if response.status != 200:
                _note_refusal(timing, response.status, await response.read())
                timing.reservation = response.headers.get(RESERVATION, "")
                return timing
            await _read_events(response, timing, leave_after)
    except (TimeoutError, aiohttp.ClientError) as exc:
        timing.error = f"{type(exc).__name__}: {exc}"
    return timing


def _note_refusal(timing: Timing, status: int, body: bytes) -> None:
    timing.error = f"status {status}: {body[:200].decode(errors='replace')}"
    timing.is_refused = status == HTTPStatus.TOO_MANY_REQUESTS
    if timing.is_refused:
        timing.earliest_ms = orjson.loads(body)["error"].get("earliest_feasible_ms")


async def _read_events(response: aiohttp.ClientResponse, timing: Timing, leave_after: int | None) -> None:
    rest = b""
    async for chunk in response.content.iter_any():
        now_s = time.perf_counter()
        *events, rest = (rest + chunk).split(_EVENT_END)
        for event in events:
            if event.startswith(b"data: {"):
                data = orjson.loads(event[6:])
                if "error" in data:
                    timing.error = str(data["error"])
                elif data["choices"]:
                    timing.tokens_s.append(now_s)
        if leave_after is not None and len(timing.tokens_s) >= leave_after:
            response.close()
            return


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
