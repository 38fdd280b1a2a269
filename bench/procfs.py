"""Memory and CPU time of the processes of one stack, found by an environment variable they inherit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TAG = "BATON_BENCH_TAG"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One process: what it is called, its memory share and the CPU time it used so far."""

    pid: int
    name: str
    pss_mb: float  # proportional set size, MiB
    cpu_s: float  # user and system


def tagged(tag: str) -> list[Process]:
    """List the processes whose environment carries `tag`, and all of their descendants."""
    parents = {pid: _parent(pid) for pid in _pids()}
    chosen = {pid for pid in parents if _has_tag(pid, tag)}
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in chosen} - chosen
        chosen |= children
        grown = bool(children)
    chosen.discard(os.getpid())
    return [process for pid in sorted(chosen) if (process := _read(pid)) is not None]


def cpu_s(processes: Sequence[Process]) -> float:
    """Sum the CPU time of processes now; those that ended meanwhile count with what was last seen."""
    total = 0.0
    for process in processes:
        now = _read(process.pid)
        total += now.cpu_s if now is not None else process.cpu_s
    return total


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _has_tag(pid: int, tag: str) -> bool:
    try:
        return f"{TAG}={tag}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def _read(pid: int) -> Process | None:
    stat = _stat(pid)
    if stat is None or stat[0] == "Z":
        return None
    pss_kb = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                pss_kb = int(line.split()[1])
    return Process(pid, _name(pid), pss_kb / 1024, (int(stat[11]) + int(stat[12])) / _TICKS_PER_S)


def _name(pid: int) -> str:
    """Name a process for people: the module or script it runs, or what it calls itself."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    for word in words[1:3]:
        if word.endswith(".py"):
            return Path(word).name
    return words[0].rpartition("/")[2] if words[0] and not comm.startswith("VLLM") else comm
