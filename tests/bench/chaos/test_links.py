"""Connections that are cut break at both ends; what cannot be done is said."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket

import pytest

from bench.chaos import links
from bench.chaos.links import CannotCut, cut_connections, slow_links


def test_a_cut_connection_breaks_and_no_other() -> None:
    if os.geteuid() != 0 or shutil.which("ss") is None:
        pytest.skip("needs root and ss")
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        clients = [stack.enter_context(socket.create_connection(server.getsockname())) for server in servers]
        ends = [stack.enter_context(server.accept()[0]) for server in servers]
        try:
            cut_connections([servers[0].getsockname()[1]])
        except CannotCut as exc:
            pytest.skip(str(exc))
        ends[1].sendall(b"x")
        assert clients[1].recv(1) == b"x"
        clients[0].settimeout(10)
        with pytest.raises(OSError, match=r"abort|reset"):
            clients[0].sendall(b"y")


def test_a_command_that_is_missing_or_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotCut, match="no-such-command"):
        links._run("no-such-command")
    with pytest.raises(CannotCut, match="false"):
        links._run("false")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotCut, match="tc"), slow_links():
        pass
