"""Steady traffic of greedy streams, each judged against the answer that its prompt has when nothing is broken.

Owns sending, judging and nothing else. Must not know what is being broken.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import aiohttp
import orjson

from cluster.front import Front
from core.errors import StartFailed

_OPENINGS: Final = (
    "To be, or not to be, that is the question:",
    "Friends, Romans, countrymen, lend me your ears;",
    "Now is the winter of our discontent",
    "Shall I compare thee to a summer's day?",
    "The quality of mercy is not strained;",
    "Tomorrow, and tomorrow, and tomorrow,",
)
_FILLING: Final = " It was the nightingale, and not the lark, that pierced the fearful hollow of thine ear."
_END: Final = b"\n\n"


class Verdict(StrEnum):
    """What a client got."""

    RIGHT = "right"  # the whole answer, to its end
    REFUSED = "refused"  # 429 or 503 with a reason, and a time to come back
    ERROR = "error"  # another error, said plainly: a status, or an error event that ends the stream
    WRONG = "wrong"  # other text than without faults, or a silent end
    CUT = "cut"  # the connection broke
    HUNG = "hung"  # no end within the deadline
    LEFT = "left"  # this client went away on purpose


CLEAN: Final = (Verdict.RIGHT, Verdict.REFUSED, Verdict.ERROR, Verdict.LEFT)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request, as its client saw it; times from time.monotonic()."""

    prompt: int  # index
    began_s: float
    ended_s: float
    verdict: Verdict
    detail: str = ""
    first_s: float | None = None  # first text
    longest_gap_s: float = 0.0  # between two texts


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent."""

    prompts: tuple[str, ...]
    max_tokens: int
    num_clients: int
    deadline_s: float  # of one request


def make_load(*, num_prompts: int, max_tokens: int, num_clients: int, deadline_s: float, seed: int) -> Load:
    """Make prompts of several lengths, no two alike from their first words on, so that none is found in a cache."""
    chance = random.Random(seed)
    prompts = []
    for number in range(num_prompts):
        opening = _OPENINGS[number % len(_OPENINGS)]
        prompts.append(f"Scene {number + 1}. {opening}" + _FILLING * chance.choice((0, 1, 4, 10)))
    return Load(tuple(prompts), max_tokens, num_clients, deadline_s)


class Traffic:
    """Clients that each send one request after the other, until stopped."""

    def __init__(self, front: Front, model: str, load: Load, *, seed: int = 0) -> None:
        self._front = front
        self._model = model
        self._load = load
        self._random = random.Random(seed)
        self._expected: list[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self.answers: list[Answer] = []  # by time of their end

    @property
    def num_clients(self) -> int:
        """How many requests are under way at a time."""
        return self._load.num_clients

    async def learn(self) -> None:
        """Ask every prompt once, alone, and keep the answers as right. Raises StartFailed if one does not come."""
        expected = []
        for number in range(len(self._load.prompts)):
            text, answer = await self._stream(number)
            if answer.verdict is not Verdict.RIGHT:
                raise StartFailed(f"before any fault, a request ended {answer.verdict}: {answer.detail}")
            expected.append(text)
        self._expected = expected

    def start(self) -> None:
        """Begin to send."""
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._load.num_clients)]

    async def stop(self) -> None:
        """Send nothing more and wait for what is under way, each request within its deadline."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Give up the connections."""
        if self._session is not None:
            await self._session.close()

    async def leave_early(self, num_clients: int) -> list[Answer]:
        """Send from many clients at once, who all go away at a moment of chance; return what they saw."""
        pauses = [self._random.uniform(0.0, 1.0) for _ in range(num_clients)]
        async with _new_session() as session:  # of their own: what idles in it would look like a leak of the router
            return list(await asyncio.gather(*(self._leaving(pause_s, session) for pause_s in pauses)))

    async def _leaving(self, pause_s: float, session: aiohttp.ClientSession) -> Answer:
        began_s = time.monotonic()
        number = self._random.randrange(len(self._load.prompts))
        try:
            async with asyncio.timeout(pause_s):
                return (await self._stream(number, session))[1]
        except TimeoutError:
            return Answer(number, began_s, time.monotonic(), Verdict.LEFT)

    async def _client(self) -> None:
        stopping = False
        while not stopping:
            number = self._random.randrange(len(self._load.prompts))
            request = asyncio.create_task(self._stream(number))
            try:
                _, answer = await asyncio.shield(request)
            except asyncio.CancelledError:
                stopping = True
                _, answer = await request
            self.answers.append(answer)
            if answer.verdict is not Verdict.RIGHT:
                await asyncio.sleep(0.2)  # a refusal comes at once; asking in a tight loop would be a fault of ours

    async def _stream(self, number: int, session: aiohttp.ClientSession | None = None) -> tuple[str, Answer]:
        """Send one request and read it to its end."""
        reading = _Reading(number, time.monotonic())
        try:
            async with asyncio.timeout(self._load.deadline_s):
                await self._read(number, reading, session or self._open())
        except TimeoutError:
            return reading.text, reading.ended(Verdict.HUNG, f"no end after {self._load.deadline_s:g} s")
        except (aiohttp.ClientError, OSError) as exc:
            return reading.text, reading.ended(Verdict.CUT, f"{type(exc).__name__}: {exc}")
        return reading.text, self._judged(reading)

    async def _read(self, number: int, reading: _Reading, session: aiohttp.ClientSession) -> None:
        body = {
            "model": self._model,
            "prompt": self._load.prompts[number],
            "max_tokens": self._load.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"content-type": "application/json"}
        if self._front.key:
            headers["authorization"] = f"Bearer {self._front.key}"
        url = f"{self._front.url}/v1/completions"
        tls = True if self._front.tls is None else self._front.tls
        async with session.post(url, data=orjson.dumps(body), headers=headers, ssl=tls) as response:
            reading.status = response.status
            reading.retry_after = "retry-after" in response.headers
            if response.status != 200:
                reading.failure = (await response.read())[:300].decode(errors="replace")
                return
            rest = b""
            async for chunk in response.content.iter_any():
                *events, rest = (rest + chunk).split(_END)
                for event in events:
                    reading.take(event)

    def _judged(self, reading: _Reading) -> Answer:
        if reading.status in (429, 503) and reading.retry_after:
            return reading.ended(Verdict.REFUSED, reading.failure)
        if reading.failure:
            return reading.ended(Verdict.ERROR, f"{reading.status}: {reading.failure}")
        if not reading.is_done:
            return reading.ended(Verdict.WRONG, "the stream ended without [DONE] and without an error")
        if self._expected is not None and reading.text != self._expected[reading.number]:
            return reading.ended(Verdict.WRONG, _difference(self._expected[reading.number], reading.text))
        return reading.ended(Verdict.RIGHT)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = _new_session()
        return self._session


def _new_session() -> aiohttp.ClientSession:
    unlimited = aiohttp.ClientTimeout(total=None)  # each request has a deadline of its own
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=unlimited)


class _Reading:
    """A stream as it comes."""

    def __init__(self, number: int, began_s: float) -> None:
        self.number = number
        self.text = ""
        self.status = 0
        self.retry_after = False
        self.failure = ""
        self.is_done = False
        self._began_s = began_s
        self._first_s: float | None = None
        self._latest_s = began_s
        self._longest_gap_s = 0.0

    def take(self, event: bytes) -> None:
        """Take one event."""
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            self.is_done = True
            return
        content = orjson.loads(data)
        if "error" in content:
            self.failure = str(content["error"])
            return
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
        else:
            self._longest_gap_s = max(self._longest_gap_s, now_s - self._latest_s)
        self._latest_s = now_s
        self.text += "".join(choice["text"] for choice in content["choices"])

    def ended(self, verdict: Verdict, detail: str = "") -> Answer:
        """Sum up."""
        return Answer(self.number, self._began_s, time.monotonic(), verdict, detail, self._first_s, self._longest_gap_s)


def _difference(expected: str, got: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    return f"differs from character {at}: {expected[at : at + 30]!r} expected, {got[at : at + 30]!r} got"


def count(answers: Sequence[Answer], verdict: Verdict) -> int:
    """Count the answers of one verdict."""
    return sum(answer.verdict is verdict for answer in answers)
