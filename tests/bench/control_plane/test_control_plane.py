"""A run with a few workers, as it is with many: a real controller, router and sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RUN_S = 240.0

pytestmark = pytest.mark.slow


def test_a_small_run_tells_reach_steps_and_memory() -> None:
    flags = ["--workers", "4", "--changes", "4", "--every", "0.1", "--still", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.control_plane", *flags], capture_output=True, text=True, timeout=RUN_S, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 workers up in ")
    assert lines[1].endswith(" of 4")  # each death and each flip is one change at the router
    rows = [line for line in lines if line.startswith("| what") or line.startswith("| a decision")]
    assert len(rows) == 6
    memory = next(line for line in lines if line.startswith("| resident memory"))
    assert all(float(cell) > 0 for cell in memory.split("|")[2:-1])
