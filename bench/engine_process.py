"""The parent's side of engine.measured_engine: start one engine, send it batches of calls, stop it.

Owns the process. Must not know what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.core_wait import CoreTimes, core_times
from core.errors import EngineFailed, StartFailed
from core.worker_spec import WorkerSpec
from engine.measured_engine import MODULE, CallTimes
from engine.step_clock import TracedStep
from engine.step_trace import read_trace

ROOT = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 600.0  # a large model from a slow disk
_BATCH_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Call:
    """One completion, to be sent `after_s` seconds after its batch."""

    body: dict[str, object]
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself once it is up."""

    engine: str  # "vllm 0.32.0+cpu"
    max_model_len: int
    block_size: int
    num_kv_blocks: int
    kv_address: str  # empty: it hands nothing over
    dtype: str
    cache_dtype: str

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_kv_blocks * self.block_size


class EngineProcess:
    """An engine that is up; made by `running`."""

    def __init__(self, spec: WorkerSpec, popen: subprocess.Popen[bytes], answers_fd: int, log: Path) -> None:
        self.spec = spec
        self.facts: EngineFacts
        self._popen = popen
        self._answers_fd = answers_fd
        self._log = log
        self._rest = b""

    @property
    def trace_file(self) -> Path:
        """Where the engine core writes its steps."""
        return trace_file(self.spec)

    def core_times(self) -> CoreTimes:
        """Say how long the engine's processes ran and waited for cores."""
        return core_times(self._popen.pid)

    def begin(self, calls: Sequence[Call]) -> None:
        """Submit a batch of completions; `finish` gives their times."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps([asdict(call) for call in calls]).encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError as exc:
            raise EngineFailed(self._words("the engine ended")) from exc

    def finish(self) -> list[CallTimes]:
        """Wait for the batch submitted last. Raises EngineFailed if a call failed or the engine did."""
        answer = self._answer(_BATCH_TIMEOUT_S)
        if "times" not in answer:
            raise EngineFailed(self._words(str(answer.get("failed", answer))))
        times = [CallTimes(**each) for each in answer["times"]]  # type: ignore[attr-defined]
        for each in times:
            if each.status != 200:
                raise EngineFailed(f"the engine answered {each.status}: {each.error}")
        return times

    def run(self, calls: Sequence[Call]) -> list[CallTimes]:
        """Submit a batch and wait for it."""
        self.begin(calls)
        return self.finish()

    def steps(self) -> list[TracedStep]:
        """Read every step since the start."""
        return read_trace(self.trace_file)

    def wait_ready(self) -> None:
        """Wait until the engine serves. Raises StartFailed with its own words."""
        try:
            answer = self._answer(_START_TIMEOUT_S)
        except EngineFailed as exc:
            raise StartFailed(str(exc)) from exc
        ready = answer.get("ready")
        if not isinstance(ready, dict):
            raise StartFailed(self._words(str(answer.get("failed", answer))))
        print_ = ready["fingerprint"]
        self.facts = EngineFacts(
            engine=print_["engine"],
            max_model_len=ready["max_model_len"],
            block_size=print_["block_size"],
            num_kv_blocks=ready["num_kv_blocks"],
            kv_address=ready["kv_address"],
            dtype=print_["dtype"],
            cache_dtype=print_["cache_dtype"],
        )

    def kill(self) -> None:
        """End the process and all below it at once; whoever waits for it gets EngineFailed. `stop` is still due."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the process and all below it."""
        with contextlib.suppress(OSError):
            if self._popen.stdin is not None:
                self._popen.stdin.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_TIMEOUT_S)
        finally:
            self.kill()
        self._popen.wait()
        os.close(self._answers_fd)

    def _answer(self, timeout_s: float) -> dict[str, object]:
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._answers_fd], [], [], left_s)[0]:
                raise EngineFailed(self._words(f"no answer within {timeout_s:g} s"))
            data = os.read(self._answers_fd, 1 << 16)
            if not data:
                raise EngineFailed(self._words(f"the engine ended with {self._popen.wait()}"))
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _words(self, reason: str) -> str:
        with contextlib.suppress(OSError):
            tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
            return f"{self.spec.worker_id}: {reason}\nend of {self._log}:\n{tail}"
        return f"{self.spec.worker_id}: {reason}"


def trace_file(spec: WorkerSpec) -> Path:
    """Say where the engine core of `spec` writes its steps."""
    return Path(spec.run_dir) / f"{spec.worker_id}.steps"


@contextlib.contextmanager
def running(specs: Sequence[WorkerSpec], env: Sequence[Mapping[str, str]] = ()) -> Iterator[list[EngineProcess]]:
    """Start one engine for each spec, all at once, and stop them at the end; `env` is added to each one's environment.

    An error or Ctrl-C ends them at once. Raises StartFailed.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        for spec, added in zip(specs, env or [{}] * len(specs), strict=True):
            process = _spawn(spec, added)
            stack.callback(process.stop)
            processes.append(process)
        try:
            for process in processes:
                process.wait_ready()
            yield processes
        except BaseException:
            for process in processes:  # nobody is to wait for what an engine still computes or loads
                process.kill()
            raise


def _spawn(spec: WorkerSpec, added: Mapping[str, str]) -> EngineProcess:
    folder = Path(spec.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder / f"{spec.worker_id}.spec.json", folder / f"{spec.worker_id}.log"
    file.touch(mode=0o600)
    file.write_text(spec.to_json())
    trace_file(spec).unlink(missing_ok=True)
    answers_in, answers_out = os.pipe()
    options = ["--spec", str(file), "--answers-fd", str(answers_out), "--parent-pid", str(os.getpid())]
    try:
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", MODULE, *options],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": str(ROOT), **added},
                pass_fds=(answers_out,),
                start_new_session=True,
            )
    except OSError as exc:
        os.close(answers_in)
        raise StartFailed(f"{spec.worker_id} cannot be spawned: {exc}") from exc
    finally:
        os.close(answers_out)
    return EngineProcess(spec, popen, answers_in, log)
