"""How busy the whole machine is, and waiting until it is not.

Owns the reading of /proc/stat. Must not know what is to be measured when it is calm.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_LOOK_S: Final = 0.5
_CALM_CORES: Final = 0.1


def busy_s(stat: str) -> float:
    """Add up the seconds that all cores were busy, out of the text of /proc/stat; waiting for disks is not work."""
    user, nice, system, _, _, *rest = map(int, stat.partition("\n")[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / _TICKS_PER_S  # irq, softirq, steal; guests are in user


def machine_busy_s() -> float:
    """Return the busy seconds of all cores since the machine began."""
    return busy_s(Path("/proc/stat").read_text())


def wait_until_calm(limit_s: float) -> bool:
    """Wait until the machine is all but idle, `limit_s` at most; return whether it is."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        began_s, before_s = time.monotonic(), machine_busy_s()
        time.sleep(_LOOK_S)
        if machine_busy_s() - before_s < _CALM_CORES * (time.monotonic() - began_s):
            return True
    return False
