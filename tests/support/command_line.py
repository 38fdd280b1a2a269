"""The program as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def baton(
    *arguments: str, cwd: Path = ROOT, timeout_s: float = 120, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, without the caller's own BATON_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "baton.py"), *arguments],
        cwd=cwd,
        env=inherited | environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
