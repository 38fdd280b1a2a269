"""What a process holds, and who the controller of a worker is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.chaos.processes import controller_of, usage_of


def test_the_usage_of_a_process_follows_what_it_opens(tmp_path: Path) -> None:
    before = usage_of(os.getpid())
    opened = [(tmp_path / str(number)).open("w") for number in range(10)]
    after = usage_of(os.getpid())
    for file in opened:
        file.close()
    assert before is not None
    assert after is not None
    assert after.descriptors >= before.descriptors + 10
    assert after.rss_mb > 1


def test_a_process_that_is_gone_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert usage_of(gone.pid) is None
    assert controller_of(gone.pid) is None
