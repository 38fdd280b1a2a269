"""One engine as a worker has it, without a worker around it, to be driven and timed from outside.

`python -m engine.measured_engine --spec FILE --answers-fd N`. Takes batches of calls as JSON lines from stdin and
answers with their times, one line for a batch. Owns that protocol and the order of the start, which is that of
cluster.worker_process. Must not know what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from core.engine import HttpCall
from core.errors import BatonError
from core.types import LegFacts
from core.worker_spec import WorkerSpec
from engine.process_guard import die_with_parent, guard_forks
from engine.vllm_engine import VllmEngine
from engine.vllm_env import apply_environment, start_core_threads

logger = logging.getLogger(__name__)

MODULE = "engine.measured_engine"
_JSON = (("content-type", "application/json"),)
_MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CallTimes:
    """One call as its caller saw it; times are of the machine's monotonic clock."""

    sent_s: float
    first_s: float  # first event of the body; that of the end if there was none
    ended_s: float
    status: int
    error: str = ""  # the body, if the status is no 200


class _TimingSink:
    """Notes when a reply begins."""

    def __init__(self) -> None:
        self.status = 0
        self.first_s: float | None = None
        self.data = b""

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.status = status

    def body(self, data: bytes) -> None:
        if self.first_s is None:
            self.first_s = time.monotonic()
        if self.status != 200:
            self.data += data

    def facts(self, facts: LegFacts) -> None:
        pass

    def tokens(self, token_ids: Sequence[int]) -> None:
        pass


async def _call(engine: VllmEngine, index: int, body: dict[str, object], after_s: float) -> CallTimes:
    if after_s > 0:
        await asyncio.sleep(after_s)
    call = HttpCall(f"measured-{index}", "POST", "/v1/completions", _JSON, json.dumps(body).encode())
    sink = _TimingSink()
    sent_s = time.monotonic()
    await engine.serve(call, sink)
    ended_s = time.monotonic()
    first_s = sink.first_s if sink.first_s is not None else ended_s
    return CallTimes(sent_s, first_s, ended_s, sink.status, sink.data[:500].decode(errors="replace"))


async def _serve(spec: WorkerSpec, answers_fd: int) -> None:
    """Start the engine, say so, and answer batches until stdin ends."""
    engine = await VllmEngine.start(spec, lambda stage: None)
    try:
        _answer(answers_fd, {"ready": asdict(engine.description)})
        reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            calls = json.loads(line)
            times = await asyncio.gather(
                *(_call(engine, index, call["body"], call["after_s"]) for index, call in enumerate(calls))
            )
            _answer(answers_fd, {"times": [asdict(each) for each in times]})
    finally:
        await engine.close()


def _answer(fd: int, answer: dict[str, object]) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one engine; return its exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="Run one engine to be measured.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file of a WorkerSpec")
    parser.add_argument("--answers-fd", type=int, required=True, help="file descriptor that takes answers, JSON lines")
    parser.add_argument("--parent-pid", type=int, required=True, help="die with this process")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent_pid)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    spec = WorkerSpec.from_json(options.spec.read_text())
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    if apply_environment(spec):
        os.execv(sys.executable, [sys.executable, "-m", MODULE, *sys.argv[1:]])
    os.set_inheritable(options.answers_fd, False)
    guard_forks(close_fds=(options.answers_fd,), in_child=lambda: start_core_threads(spec))
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(spec, options.answers_fd))
    except BatonError as exc:
        _answer(options.answers_fd, {"failed": str(exc)})
        return 1
    except Exception as exc:  # process boundary: the parent must hear of it
        logger.exception("the measured engine failed")
        _answer(options.answers_fd, {"failed": f"{type(exc).__name__}: {exc}"})
        return 1
    return 0


def run() -> None:
    """Run `main` and leave without the interpreter's teardown, in which native libraries of the engine may hang."""
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
