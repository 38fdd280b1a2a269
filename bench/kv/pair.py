"""A pair of processes that move jobs: started, commanded, timed, ended.

Owns the processes and what one measurement is. Must not know any system.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.kv.cache import Job, blocks_for
from bench.kv.side import RECEIVER, SENDER
from bench.kv.systems import System
from bench.router.calm import machine_busy_s
from engine.process_guard import die_with_parent

_ANSWER_S: Final = 180.0  # of any command; starting included
_STOP_S: Final = 5.0
_REPEATS: Final = ((64, 30), (512, 10), (4096, 3))  # up to so many tokens, so many times


class PairFailed(Exception):
    """A process of a pair did not answer, or what arrived is not what was sent; the message says which."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One system at one size in one round."""

    system: str
    tokens: int
    round: int
    num_bytes: int
    seconds: tuple[float, ...]  # of each repetition
    cpu_s_per_gb: float  # user and system, both processes
    other_cores: float  # used by the rest of the machine meanwhile
    layer_ms: float = 0.0  # not 0: `seconds` begin when the last layer was computed

    @property
    def median_s(self) -> float:
        """The time of one move."""
        return statistics.median(self.seconds)

    @property
    def gb_per_s(self) -> float:
        """Its rate, in 10^9 bytes a second."""
        return self.num_bytes / self.median_s / 1e9


class _Process:
    """One side; every answer is waited for within a bound."""

    def __init__(self, system: System, role: str, cache_blocks: int, python: Path, folder: Path) -> None:
        self._name, self._role = system.name, role
        self._errors = folder / f"{role}.log"
        parent_pid = os.getpid()
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", "bench.kv.side"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **system.env},
                preexec_fn=lambda: die_with_parent(parent_pid),
            )
        setup = {"module": system.module, "role": role, "options": dict(system.options), "cache_blocks": cache_blocks}
        self._tell(setup)

    def post(self, verb: str, job: Job | None = None, **words: str) -> None:
        """Give a command; its answer is taken by `answer`."""
        self._tell({"verb": verb, **({} if job is None else asdict(job)), **words})

    def ask(self, verb: str, job: Job | None = None, **words: str) -> dict[str, Any]:
        """Give a command and take its answer. Raises PairFailed."""
        self.post(verb, job, **words)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Take the answer to the last command. Raises PairFailed."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(_ANSWER_S, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line.startswith("{"):
            raise PairFailed(f"{self._name}: the {self._role} gave no answer; last words: {self._last_words(line)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def _last_words(self, line: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        return " | ".join([line.strip(), *self._errors.read_text(errors="replace").strip().splitlines()[-2:]]).strip(
            "| "
        )


class Pair:
    """Both processes of a system; made by `open_pair`."""

    def __init__(self, system: System, sender: _Process, receiver: _Process, cache_blocks: int) -> None:
        self._system, self._sender, self._receiver, self._cache_blocks = system, sender, receiver, cache_blocks
        self._num_jobs = 0

    def meet(self) -> None:
        """Connect both sides. Raises PairFailed."""
        from_sender, from_receiver = (side.answer()["address"] for side in (self._sender, self._receiver))
        self._sender.post("meet", address=from_receiver)
        self._receiver.post("meet", address=from_sender)
        for side in (self._sender, self._receiver):
            side.answer()

    def take(self, tokens: int, round_index: int, *, layer_ms: float = 0.0, repeats: int | None = None) -> Taken:
        """Move jobs of one size after one that is checked and not counted. Raises PairFailed."""
        self._check(tokens)
        repeats = repeats or next((count for limit, count in _REPEATS if tokens <= limit), 1)
        began_s, busy_s, cpu_s = time.monotonic(), machine_busy_s(), self._cpu_s()
        own_s = time.process_time()
        jobs = [replace(self._job(tokens), layer_ms=layer_ms) for _ in range(repeats)]
        seconds = tuple(self._move(job) for job in jobs)
        cpu_s, own_s = self._cpu_s() - cpu_s, time.process_time() - own_s
        others_s = machine_busy_s() - busy_s - cpu_s - own_s
        return Taken(
            self._system.name,
            tokens,
            round_index,
            jobs[0].num_bytes,
            seconds,
            cpu_s / (jobs[0].num_bytes * repeats / 1e9),
            max(0.0, others_s / (time.monotonic() - began_s)),
            layer_ms,
        )

    def _job(self, tokens: int) -> Job:
        self._num_jobs += 1
        return Job(self._num_jobs, tokens, self._cache_blocks)

    def _check(self, tokens: int) -> None:
        job = self._job(tokens)
        self._receiver.ask("wipe", job)
        self._move(job)
        wrong = 0 if self._moves_no_cache else self._receiver.ask("check", job)["wrong"]
        if wrong:
            raise PairFailed(f"{self._system.name}: {wrong} blocks of {tokens} tokens arrived wrong")

    @property
    def _moves_no_cache(self) -> bool:
        return self._system.options.get("limit") == "tcp"

    def _move(self, job: Job) -> float:
        for side in (self._receiver, self._sender):
            side.ask("prepare", job)
        if self._system.in_turn:
            spans = [self._sender.ask("run", job), self._receiver.ask("run", job)]
        else:
            self._receiver.post("run", job)
            self._sender.post("run", job)
            spans = [self._sender.answer(), self._receiver.answer()]
        began_s = [span["began_s"] for span in spans if span["began_s"] is not None]
        ended_s = [span["ended_s"] for span in spans if span["ended_s"] is not None]
        return float(max(ended_s) - min(began_s))

    def _cpu_s(self) -> float:
        return sum(float(side.ask("cpu")["cpu_s"]) for side in (self._sender, self._receiver))


@contextlib.contextmanager
def open_pair(system: System, largest_tokens: int, programs: Path | None = None) -> Iterator[Pair]:
    """Start both processes with caches for prompts of `largest_tokens`, and connect them. Raises PairFailed."""
    python = Path(sys.executable) if programs is None else programs / "python"
    cache_blocks = blocks_for(largest_tokens)
    with tempfile.TemporaryDirectory(prefix="baton-bench-kv-") as folder, contextlib.ExitStack() as stack:
        ends = []
        for role in (SENDER, RECEIVER):
            end = _Process(system, role, cache_blocks, python, Path(folder))
            stack.callback(end.end)
            ends.append(end)
        pair = Pair(system, ends[0], ends[1], cache_blocks)
        pair.meet()
        yield pair
