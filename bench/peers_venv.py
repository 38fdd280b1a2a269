"""A virtual environment for what Baton is measured beside.

Owns how it is made and how it is known to be whole. Must not know who is installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_INSTALL_S: Final = 600.0
_MARKER: Final = "bench-requirements.txt"


class PeersMissing(Exception):
    """The peers could not be installed; the message says why."""


def install_peers(folder: Path, requirements: Sequence[str], *, below: Sequence[str] = ()) -> Path:
    """Install into a virtual environment at `folder` unless that was done; return its programs' folder.

    With `below`, folders of packages that are seen from there too, the requirements come without what they require.
    Raises PeersMissing.
    """
    programs, marker = folder / "bin", folder / _MARKER
    wanted = "\n".join((*requirements, *below))
    if marker.is_file() and marker.read_text() == wanted:
        return programs
    sys.stderr.write(f"installing {', '.join(requirements)} into {folder}\n")
    _run([sys.executable, "-m", "venv", str(folder)])
    alone = ["--no-deps"] if below else []
    _run([str(programs / "python"), "-m", "pip", "install", "--quiet", *alone, *requirements])
    if below:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        paths = folder / "lib" / version / "site-packages" / "below.pth"
        paths.write_text("".join(f"{path}\n" for path in below))
    marker.write_text(wanted)
    return programs


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PeersMissing(str(exc)) from exc
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        told = [line for line in lines if line.startswith("ERROR")] or lines  # pip warns of much else
        raise PeersMissing(f"{' '.join(command[:4])} ... failed: {told[-1]}")
