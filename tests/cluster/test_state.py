"""The record of the running cluster, on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.state import CHECKOUT, ClusterRecord, ProcessIdentity, StateDir


@pytest.fixture
def record() -> ClusterRecord:
    starter = ProcessIdentity.of(os.getpid())
    assert starter is not None
    return ClusterRecord(
        ray_address="127.0.0.1:1234",
        started_ray=True,
        run_dir="/runs/1",
        config_path=None,
        starter=starter,
        ray=ProcessIdentity(1, 2),
        ray_temp_dir="/tmp/x",
        dashboard_url="http://127.0.0.1:8265",
        url="http://127.0.0.1:8000",
        model="demo",
        plan=("P/D pays", "2 requests/s"),
    )


def test_what_is_written_is_read(tmp_path: Path, record: ClusterRecord) -> None:
    state = StateDir(tmp_path / "state")
    assert state.read() is None
    state.write(record)
    assert state.read() == record
    state.write(replace(record, ray=None, ray_temp_dir=None))
    assert state.read() == replace(record, ray=None, ray_temp_dir=None)
    assert [p.name for p in state.path.iterdir()] == ["cluster.json"]


def test_only_one_command_claims(tmp_path: Path, record: ClusterRecord) -> None:
    state = StateDir(tmp_path)
    assert state.claim(record)
    assert not state.claim(replace(record, model="other"))
    assert state.read() == record
    state.remove()
    state.remove()
    assert state.claim(record)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starter": 1}', '{"no": "record", "starter": null, "ray": null}'])
def test_a_broken_record_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    assert StateDir(tmp_path).read() is None


def test_the_folder_is_found(tmp_path: Path) -> None:
    assert StateDir.find({"BATON_STATE_DIR": str(tmp_path)}).path == tmp_path
    assert StateDir.find({}).path == CHECKOUT / ".baton"


def test_runs_are_private_folders(tmp_path: Path) -> None:
    run_dir = StateDir(tmp_path).new_run("1")
    assert run_dir.stat().st_mode & 0o777 == 0o700


def test_a_process_is_known_by_pid_and_start() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        assert identity.alive
        assert not replace(identity, start_ticks=identity.start_ticks - 1).alive
        child.communicate(b"\n")
    assert not identity.alive
    assert ProcessIdentity.of(child.pid) is None
