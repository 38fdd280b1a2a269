"""The systemd units: systemd takes them, and what they start is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import baton

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy" / "systemd").glob("*.service"))

pytestmark = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def command(file: Path) -> list[str]:
    found = re.findall(r"^ExecStart=(.+)$", file.read_text(), re.MULTILINE)
    assert len(found) == 1
    words: list[str] = found[0].split()
    return words


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_it(file: Path, tmp_path: Path) -> None:
    """With programs that exist here in place of the installed ones: systemd checks that too."""
    for unit in FILES:
        text = re.sub(r"/opt/baton/\.venv/bin/\w+", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text.replace("/opt/baton", str(tmp_path)))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / file.name)], capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in checked.stderr.splitlines() if file.name in line]
    assert complaints == []


def test_it_runs_what_the_checkout_has(file: Path) -> None:
    words = command(file)
    assert words[0] in ("/opt/baton/.venv/bin/python", "/opt/baton/.venv/bin/ray")
    for word in words[1:]:
        if word.endswith(".py"):
            assert (ROOT / word).is_file()


def test_the_command_line_takes_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`up` fails at the file that is not there, not at its own flags."""
    words = command(file)
    if "baton.py" not in words:
        pytest.skip("starts Ray, not Baton")
    assert baton.main(words[words.index("baton.py") + 1 :]) == baton.USAGE
    assert "/etc/baton/slo.yaml" in capsys.readouterr().err
