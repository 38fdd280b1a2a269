"""The routers that Baton's is measured beside: how they are installed and started in prefill/decode mode.

Owns versions and command lines. Must not know what is measured. What is known of them and shows in the figures:
sglang-router sends a request to both engines at once and does not set TCP_NODELAY on its clients' connections;
vllm-router asks prefill first, then decode, and its default policy also asks both for the prompt's token ids.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REQUIREMENTS: Final = ("sglang-router==0.3.2", "vllm-router==0.1.17")
_INSTALL_S: Final = 600.0
_MARKER: Final = "bench-requirements.txt"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a peer shall listen, and its engines do."""

    listen: int
    metrics: int
    prefill: tuple[int, ...]
    decode: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """One router in one setting."""

    name: str
    command: Callable[[Path, Ports], Sequence[str]]  # from the folder of programs of its environment


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _listening(ports: Ports) -> list[str]:
    words = ["--host", "127.0.0.1", "--port", str(ports.listen), "--log-level", "error"]
    return [*words, "--prometheus-port", str(ports.metrics), "--worker-startup-check-interval", "1"]


def _sglang(programs: Path, ports: Ports) -> list[str]:
    command = [str(programs / "python"), "-m", "sglang_router.launch_router", *_listening(ports)]
    command += ["--prometheus-host", "127.0.0.1", "--pd-disaggregation"]
    for number, port in enumerate(ports.prefill):
        command += ["--prefill", _url(port), str(9000 + number)]  # the port of its engines' hand-over, unused here
    for port in ports.decode:
        command += ["--decode", _url(port)]
    return command


def _vllm(programs: Path, ports: Ports, policy: str) -> list[str]:
    command = [str(programs / "vllm-router"), *_listening(ports), "--vllm-pd-disaggregation", "--policy", policy]
    for port in ports.prefill:
        command += ["--prefill", _url(port)]
    for port in ports.decode:
        command += ["--decode", _url(port)]
    return command


PEERS: Final = (
    Peer("sglang-router", _sglang),  # its default policy, cache_aware
    Peer("vllm-router, round_robin", lambda programs, ports: _vllm(programs, ports, "round_robin")),
    Peer("vllm-router, cache_aware", lambda programs, ports: _vllm(programs, ports, "cache_aware")),  # its default
)


class PeersMissing(Exception):
    """The peers could not be installed; the message says why."""


def install(folder: Path) -> Path:
    """Install the peers into a virtual environment at `folder` unless they are there; return its programs' folder.

    Raises PeersMissing.
    """
    programs, marker = folder / "bin", folder / _MARKER
    wanted = "\n".join(REQUIREMENTS)
    if marker.is_file() and marker.read_text() == wanted:
        return programs
    sys.stderr.write(f"installing {' and '.join(REQUIREMENTS)} into {folder}\n")
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(programs / "python"), "-m", "pip", "install", "--quiet", *REQUIREMENTS])
    marker.write_text(wanted)
    return programs


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PeersMissing(str(exc)) from exc
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        told = [line for line in lines if line.startswith("ERROR")] or lines  # pip warns of much else
        raise PeersMissing(f"{' '.join(command[:4])} ... failed: {told[-1]}")
