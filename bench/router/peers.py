"""The routers that Baton's is measured beside: how they are installed and started in prefill/decode mode.

Owns versions and command lines. Must not know what is measured. What is known of them and shows in the figures:
sglang-router sends a request to both engines at once and does not set TCP_NODELAY on its clients' connections;
vllm-router asks prefill first, then decode, and its default policy also asks both for the prompt's token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers_venv import install_peers

REQUIREMENTS: Final = ("sglang-router==0.3.2", "vllm-router==0.1.17")


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


def install(folder: Path) -> Path:
    """Install the peers unless they are there; see install_peers. Raises PeersMissing."""
    return install_peers(folder, REQUIREMENTS)
