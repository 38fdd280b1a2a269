"""Forked children die with their parent and share neither its descriptors nor its signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# A parent forks a child through the guard; the child reports what it sees and then sleeps for ever.
PARENT = """
import os, signal, sys, time
from engine.process_guard import guard_forks
report, kept = int(sys.argv[1]), int(sys.argv[2])
wake_r, wake_w = os.pipe()
os.set_blocking(wake_w, False)
signal.set_wakeup_fd(wake_w)
in_child = []  # told in one write with the rest: the parent writes to the same pipe
guard_forks(close_fds=(kept,), in_child=lambda: in_child.append("in_child "))
if os.fork() == 0:
    closed = not os.path.exists(f"/proc/self/fd/{kept}")
    said = "".join(in_child)
    os.write(report, f"{said}closed={closed} wakeup={signal.set_wakeup_fd(-1)} pid={os.getpid()}\\n".encode())
    time.sleep(600)
os.write(report, f"kept={os.path.exists(f'/proc/self/fd/{kept}')}\\n".encode())
time.sleep(600)
"""


def test_a_forked_child_is_clean_and_dies_with_its_parent() -> None:
    report_r, report_w = os.pipe()
    kept_r, kept_w = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(report_w), str(kept_w)], pass_fds=(report_w, kept_w), env=environment
    )
    os.close(report_w)
    os.close(kept_w)
    try:
        with os.fdopen(report_r) as report:
            lines = sorted(report.readline() for _ in range(2))
            child = lines[0] if "in_child" in lines[0] else lines[1]
            assert "kept=True\n" in lines
            assert child.startswith("in_child closed=True wakeup=-1 ")
            pid = int(child.split("pid=")[1])
            pidfd = os.pidfd_open(pid)
            os.kill(parent.pid, signal.SIGKILL)
            # Both ends of the report are gone only when parent and child are.
            assert report.read() == ""
        os.close(pidfd)
        with os.fdopen(kept_r, "rb") as kept:
            assert kept.read() == b""
    finally:
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
