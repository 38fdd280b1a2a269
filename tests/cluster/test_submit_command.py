"""What `submit` sends to the head of a cluster, and what it says when it cannot."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

import baton
from cluster import submit_command


def start(folder: Path, *checkouts: Path) -> subprocess.CompletedProcess[str]:
    """Run the script that finds Baton on the head."""
    script = folder / "start.sh"
    script.write_text(submit_command._START_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": ":".join([str(folder), *map(str, checkouts)])}
    command = ["sh", str(script), "up", "a b.yaml", "--set", "x=$1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def checkout(folder: Path) -> Path:
    """Make a checkout whose interpreter tells its arguments."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "baton.py").touch()
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    python.chmod(0o755)
    return folder


def test_the_checkout_of_the_head_is_found_and_given_the_words_as_they_are(tmp_path: Path) -> None:
    found = start(tmp_path, tmp_path / "none", checkout(tmp_path / "it is here"))
    assert (found.returncode, found.stdout) == (0, "-m|baton|up|a b.yaml|--set|x=$1|")


def test_a_head_without_baton_is_told_what_to_do(tmp_path: Path) -> None:
    found = start(tmp_path)
    assert found.returncode == 2
    assert "PYTHONPATH" in found.stdout
    assert "--python" in found.stdout


def test_no_job_server_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        assert baton.main(["submit", "--address", address]) == baton.USAGE
    error = capsys.readouterr().err
    assert "--address" in error
    assert "kubectl port-forward" in error
