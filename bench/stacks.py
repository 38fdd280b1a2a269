"""Brings systems up to be measured and takes them down: Baton as `baton up` starts it, and plain vLLM beside it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from bench.procfs import TAG
from cluster.front import Front, front_of
from cluster.state import StateDir
from core.errors import StartFailed

ROOT = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A system that answers at `url`; `tag` finds its processes."""

    name: str
    url: str
    tag: str
    start_s: float
    stages: tuple[tuple[str, float], ...] = field(default=())  # (stage, seconds since the start)
    tls: ssl.SSLContext | None = None  # trust in its certificate, if it speaks TLS
    key: str = field(default="", repr=False)  # that it asks for; empty: none


@dataclass(frozen=True, slots=True)
class OnePool:
    """One engine of plain vLLM."""

    model: str  # folder, or hub id
    chunk_tokens: int
    threads: int
    kv_mb: int | None  # None: the engine's own choice
    model_name: str = "m"
    max_model_len: int = 4096
    dtype: str = "auto"
    block_size: int = 32
    max_num_seqs: int = 64
    tensor_parallel: int = 1
    data_parallel: int = 1

    def flags(self) -> list[str]:
        """Write the flags of `vllm serve`."""
        flags = {
            "--model": self.model,
            "--served-model-name": self.model_name,
            "--max-model-len": str(self.max_model_len),
            "--max-num-batched-tokens": str(self.chunk_tokens),
            "--block-size": str(self.block_size),
            "--max-num-seqs": str(self.max_num_seqs),
            "--dtype": self.dtype,
        }
        if self.kv_mb is not None:
            flags |= {"--kv-cache-memory-bytes": str(self.kv_mb << 20), "--distributed-executor-backend": "uni"}
        if self.tensor_parallel > 1:
            flags["--tensor-parallel-size"] = str(self.tensor_parallel)
        if self.data_parallel > 1:
            flags["--data-parallel-size"] = str(self.data_parallel)
        words = [part for pair in flags.items() for part in pair]
        return words if self.kv_mb is None else [*words, "--enforce-eager"]


@contextlib.contextmanager
def one_pool_of(pool: OnePool, *, run_dir: Path) -> Iterator[Running]:
    """Run vLLM's own server."""
    port = _free_port()
    arguments = [*pool.flags(), "--host", "127.0.0.1", "--port", str(port)]
    env = {"OMP_NUM_THREADS": str(pool.threads), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    name, tag = f"one pool, chunk {pool.chunk_tokens}", uuid.uuid4().hex
    log = run_dir / f"one-pool-{pool.chunk_tokens}.log"
    with _process(["-m", "engine.one_pool", *arguments], log, tag, env) as process:
        url = f"http://127.0.0.1:{port}"
        yield Running(name, url, tag, _wait_healthy(process, url))


@contextlib.contextmanager
def one_pool(model: Path, *, chunk_tokens: int, threads: int, kv_mb: int, run_dir: Path) -> Iterator[Running]:
    """Run vLLM's own server on both cores with `threads` compute threads."""
    with one_pool_of(OnePool(str(model), chunk_tokens, threads, kv_mb), run_dir=run_dir) as running:
        yield running


@contextlib.contextmanager
def baton(config: Path, *, run_dir: Path, overrides: Sequence[str] = ()) -> Iterator[Running]:
    """Run `baton up` on a state folder of its own; the router's port is the configuration's, on a free one here."""
    tag = uuid.uuid4().hex
    env = {"BATON_STATE_DIR": str(run_dir / "state"), "BATON_ROUTER__PORT": str(_free_port())}
    command = [str(ROOT / "baton.py"), "up", str(config), "--foreground"]
    command += [part for override in overrides for part in ("--set", override)]
    log = run_dir / "baton.log"
    with _process(command, log, tag, env) as process:
        front, start_s = _wait_ready(process, StateDir(run_dir / "state"))
        yield Running("Baton 1P1D", front.url, tag, start_s, tuple(_stages(log)), front.tls, front.key)


_STAGE_LINE = re.compile(r"^ *([0-9.]+) s  (\S+) +(.*)$")


def _stages(log: Path) -> Iterator[tuple[str, float]]:
    """Read the stage lines that `baton up` prints."""
    for line in log.read_text(errors="replace").splitlines():
        if match := _STAGE_LINE.match(line):
            yield f"{match[2]}: {match[3]}", float(match[1])


@contextlib.contextmanager
def _process(
    arguments: Sequence[str], log: Path, tag: str, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), TAG: tag, **env}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=out, env=environment, start_new_session=True, cwd=ROOT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_healthy(process: subprocess.Popen[bytes], url: str) -> float:
    """Wait until /health answers 200; return the seconds it took. Raises StartFailed."""
    return _wait_for(process, lambda: Front(url))[1]


def _wait_ready(process: subprocess.Popen[bytes], state: StateDir) -> tuple[Front, float]:
    """Wait until the router that a run records answers; return how it is reached, and the seconds it took.

    Raises StartFailed.
    """

    def front() -> Front | None:
        record = state.read()
        return front_of(record.url, Path(record.run_dir)) if record is not None and record.url else None

    return _wait_for(process, front)


def _wait_for(process: subprocess.Popen[bytes], find: Callable[[], Front | None]) -> tuple[Front, float]:
    start_s = time.monotonic()
    while time.monotonic() - start_s < _START_TIMEOUT_S:
        if process.poll() is not None:
            raise StartFailed(f"{process.args!r} ended with {process.returncode}; see its log")
        if (front := find()) is not None and _is_healthy(front):
            return front, time.monotonic() - start_s
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    raise StartFailed(f"{process.args!r} was not ready in {_START_TIMEOUT_S:g} s")


def _is_healthy(front: Front) -> bool:
    with contextlib.suppress(URLError, OSError), urlopen(f"{front.url}/health", timeout=2, context=front.tls) as answer:
        return bool(answer.status == HTTPStatus.OK)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
