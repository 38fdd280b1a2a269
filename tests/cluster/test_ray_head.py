"""The end of a Ray head that Baton started; its start is in test_commands.py."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cluster.ray_head import stop_own_ray
from cluster.ray_runtime import TEMP_PREFIX
from cluster.state import ProcessIdentity


def test_only_the_process_of_the_record_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        identity = ProcessIdentity.of(other.pid)
        assert identity is not None
        reused = ProcessIdentity(other.pid, identity.start_ticks - 1)
        stop_own_ray(reused, None, keep_logs_in=tmp_path, grace_s=1)
        assert other.poll() is None
        other.communicate(b"\n")


def test_a_head_deaf_to_sigterm_is_killed_and_its_logs_are_kept(tmp_path: Path) -> None:
    temp_dir = tmp_path / f"{TEMP_PREFIX}x"
    (temp_dir / "session_latest" / "logs").mkdir(parents=True)
    (temp_dir / "session_latest" / "logs" / "raylet.out").write_text("last words")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as head:
        assert head.stdout is not None
        head.stdout.readline()
        identity = ProcessIdentity.of(head.pid)
        assert identity is not None
        begin_s = time.monotonic()
        stop_own_ray(identity, str(temp_dir), keep_logs_in=run_dir, grace_s=0.2)
        assert time.monotonic() - begin_s < 5
    assert not identity.alive
    assert not temp_dir.exists()
    assert (run_dir / "ray" / "raylet.out").read_text() == "last words"


def test_folders_that_are_not_batons_are_left_alone(tmp_path: Path) -> None:
    stop_own_ray(ProcessIdentity(2**22 - 1, 1), str(tmp_path), keep_logs_in=tmp_path, grace_s=0)
    assert tmp_path.exists()
