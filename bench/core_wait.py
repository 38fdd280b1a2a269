"""How long processes ran and how long they waited for a core to run on: whether a machine is as quiet as it should be.

Owns the reading of /proc. A system without it (no Linux, no scheduler statistics) has waited for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Seconds of all threads of some processes since they began."""

    ran_s: float
    waited_s: float  # ready to run, and no core was free

    def since(self, earlier: CoreTimes) -> CoreTimes:
        """Return what has come since `earlier`; threads that ended meanwhile make it too small, never negative."""
        return CoreTimes(max(self.ran_s - earlier.ran_s, 0.0), max(self.waited_s - earlier.waited_s, 0.0))

    @property
    def waited_share(self) -> float:
        """The part of the time in which they wanted to run that they could not."""
        wanted_s = self.ran_s + self.waited_s
        return self.waited_s / wanted_s if wanted_s > 0 else 0.0

    def __add__(self, other: CoreTimes) -> CoreTimes:
        return CoreTimes(self.ran_s + other.ran_s, self.waited_s + other.waited_s)


def core_times(pid: int, proc: Path = Path("/proc")) -> CoreTimes:
    """Add up the times of a process and of every process below it."""
    total = CoreTimes(0.0, 0.0)
    pids = [pid]
    for each in pids:  # grows as children are found
        for task in _tasks(proc / str(each) / "task"):
            total += _times(task / "schedstat")
            pids += [int(child) for child in _words(task / "children")]
    return total


def _tasks(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _times(file: Path) -> CoreTimes:
    """Read one thread: nanoseconds run and waited, and time slices (Linux, Documentation/scheduler/sched-stats)."""
    words = _words(file)
    return CoreTimes(int(words[0]) * _NS, int(words[1]) * _NS) if len(words) >= 2 else CoreTimes(0.0, 0.0)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
