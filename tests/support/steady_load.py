"""Requests that come and come while a test changes the cluster behind them, and what became of each."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx


@dataclass
class Answers:
    """What clients got; filled from several threads."""

    ok: list[tuple[float, float]] = field(default_factory=list)  # (began, ended) in monotonic seconds
    failures: list[tuple[float, str]] = field(default_factory=list)  # (ended, what the client saw)
    first: threading.Event = field(default_factory=threading.Event)  # set once one is ok

    def failures_after(self, since_s: float) -> list[str]:
        """List what failed after a moment."""
        return [what for at_s, what in self.failures if at_s > since_s]

    def longest_gap_s(self, since_s: float, until_s: float) -> float:
        """Say for how long no answer ended between two moments."""
        ends = sorted(ended for _, ended in self.ok if since_s < ended < until_s)
        marks = [since_s, *ends, until_s]
        return max(after - before for before, after in itertools.pairwise(marks))


@contextmanager
def steady_load(
    url: str, *, clients: int = 4, tokens: int = 20, prompt_words: int = 40, model: str = "demo"
) -> Iterator[Answers]:
    """Keep `clients` busy with streams, one after another; at the end every one that runs is waited for."""
    answers, stop, words = Answers(), threading.Event(), "word " * prompt_words
    threads = [
        threading.Thread(
            target=_ask_on,
            args=(
                url,
                answers,
                stop,
                {"model": model, "max_tokens": tokens, "stream": True},
                f"{number} {{}} " + words,
            ),
        )
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


def _ask_on(url: str, answers: Answers, stop: threading.Event, body: dict[str, object], prompt: str) -> None:
    asked = 0
    with httpx.Client(timeout=60) as client:
        while not stop.is_set():
            asked += 1
            began_s = time.monotonic()
            what = _ask(client, url, body | {"prompt": prompt.format(asked)})
            if what:
                answers.failures.append((time.monotonic(), what))
                stop.wait(0.05)
            else:
                answers.ok.append((began_s, time.monotonic()))
                answers.first.set()


def _ask(client: httpx.Client, url: str, body: dict[str, object]) -> str:
    """Read one stream to its end; return what went wrong, empty if nothing did."""
    try:
        with client.stream("POST", url + "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {answer.read().decode()}"
            lines = [line for line in answer.iter_lines() if line]
    except httpx.HTTPError as exc:
        return f"{type(exc).__name__}: {exc}"
    return "" if lines[-1] == "data: [DONE]" and not any('"error"' in line for line in lines) else lines[-1]
