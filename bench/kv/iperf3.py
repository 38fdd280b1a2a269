"""iperf3 with two streams, where the program is installed.

The receiver's end starts a server for each move, the sender's end a client; iperf3 keeps the time.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from typing import Any, Final

from bench.kv.cache import Bytes, Job
from bench.kv.side import Side, Span

PROGRAM: Final = "iperf3"
_STREAMS: Final = 2
_WAIT_S: Final = 60.0
_READY: Final = "Server listening"


def is_installed() -> bool:
    """Tell whether this machine has iperf3."""
    return shutil.which(PROGRAM) is not None


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the client's end."""
    return _Client()


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    """Build the server's end."""
    return _Server()


class _Server:
    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = str(free.getsockname()[1])
        self._server: subprocess.Popen[str] | None = None

    def meet(self, address: str) -> None:
        """The client comes."""

    def prepare(self, job: Job) -> None:
        """Start a server that ends after one client, and wait until it listens."""
        words = [PROGRAM, "--server", "--one-off", "--port", self.address, "--forceflush"]
        self._server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        for line in self._server.stdout:
            if _READY in line:
                return
        raise RuntimeError(f"{PROGRAM} does not listen on port {self.address}")

    def run(self, job: Job) -> Span:
        assert self._server is not None
        self._server.communicate(timeout=_WAIT_S)
        return Span()

    def close(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self._server.kill()
            self._server.wait()


class _Client:
    address = ""

    def __init__(self) -> None:
        self._port = ""

    def meet(self, address: str) -> None:
        self._port = address

    def prepare(self, job: Job) -> None:
        """The server prepares."""

    def run(self, job: Job) -> Span:
        words = [PROGRAM, "--client", "127.0.0.1", "--port", self._port, "--parallel", str(_STREAMS), "--json"]
        words += ["--bytes", str(job.num_bytes // _STREAMS)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_WAIT_S)
        report: dict[str, Any] = json.loads(done.stdout)
        if "error" in report:
            raise RuntimeError(f"{PROGRAM}: {report['error']}")
        received = report["end"]["sum_received"]
        now_s = time.monotonic()
        return Span(now_s - job.num_bytes * 8 / received["bits_per_second"], now_s)

    def close(self) -> None:
        """Nothing is held."""
