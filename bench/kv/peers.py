"""The environment of the peers that come as wheels: NIXL and Mooncake.

Owns versions and installation. numpy and torch are those of the environment that runs the benchmark: NIXL's wheel
would bring several GB of torch and CUDA, of which nothing is used here.
"""

from __future__ import annotations

import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

REQUIREMENTS: Final = ("nixl==1.5.1", "nixl-cu12==1.5.1", "mooncake-transfer-engine-non-cuda==0.3.13")
_INSTALL_S: Final = 600.0
_MARKER: Final = "bench-requirements.txt"


class PeersMissing(Exception):
    """The peers could not be installed; the message says why."""


def install(folder: Path) -> Path:
    """Install the peers into a virtual environment at `folder` unless they are there; return its programs' folder.

    Raises PeersMissing.
    """
    programs, marker = folder / "bin", folder / _MARKER
    wanted = "\n".join((*REQUIREMENTS, *site.getsitepackages()))
    if marker.is_file() and marker.read_text() == wanted:
        return programs
    sys.stderr.write(f"installing {', '.join(REQUIREMENTS)} into {folder}\n")
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-deps", *REQUIREMENTS])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    below = folder / "lib" / version / "site-packages" / "below.pth"
    below.write_text("".join(f"{path}\n" for path in site.getsitepackages()))
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
