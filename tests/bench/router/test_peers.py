"""Peers are started with every engine of both roles; that they cannot be installed is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.peers_venv import PeersMissing
from bench.router.peers import PEERS, REQUIREMENTS, Peer, Ports, install

PORTS = Ports(8000, 8001, (9001, 9002), (9003, 9004))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_commands_name_port_and_engines(peer: Peer) -> None:
    command = list(peer.command(Path("/programs"), PORTS))
    assert command[0].startswith("/programs/")
    assert command[command.index("--port") + 1] == "8000"
    for flag, ports in (("--prefill", PORTS.prefill), ("--decode", PORTS.decode)):
        named = [command[at + 1] for at, word in enumerate(command) if word == flag]
        assert named == [f"http://127.0.0.1:{port}" for port in ports]


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    (tmp_path / "bench-requirements.txt").write_text("\n".join(REQUIREMENTS))
    assert install(tmp_path) == tmp_path / "bin"


def test_a_failed_installation_says_why(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(PeersMissing, match="failed: "):
        install(in_the_way)
