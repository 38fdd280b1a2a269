"""A cluster that was started to be broken does not stay behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.chaos.target import started

# Plays `baton.py`: while it goes down, whoever waits for it and it itself are told to stop, as by Ctrl-C.
BATON = """
import json, os, signal, sys
from pathlib import Path
if sys.argv[1] == "down":
    os.kill(os.getppid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    Path("down").touch()
print(json.dumps({"ok": True, "url": "http://127.0.0.1:1", "run_dir": ".", "model": "m"}))
"""


def test_ctrl_c_while_it_goes_down_does_not_leave_it_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with started(tmp_path / "x.yaml", (), tmp_path, (sys.executable, "-c", BATON)):
        assert not (tmp_path / "down").exists()
    assert (tmp_path / "down").exists()
    with pytest.raises(KeyboardInterrupt), started(tmp_path / "x.yaml", (), tmp_path, (sys.executable, "-c", BATON)):
        raise KeyboardInterrupt
