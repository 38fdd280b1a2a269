"""What is kept on disk about the cluster that runs from this checkout, so that a later command finds it.

Owns the file `cluster.json` in the state folder and the identity of a process (its pid can be used again). Must not
know Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
STATE_DIR_VARIABLE = "BATON_STATE_DIR"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process: a pid, and when it started, in clock ticks since boot, which tells it from a later owner."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Look a running process up; None when it is gone or a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks
        return None if fields[0] == "Z" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """One cluster, from the moment before its first process starts."""

    ray_address: str  # host:port; empty until Ray runs
    started_ray: bool  # Baton started this Ray, and ends it
    run_dir: str  # logs and specs of this run
    config_path: str | None
    starter: ProcessIdentity  # the command that brings it up, or waits for it
    ray: ProcessIdentity | None = None  # of a Ray started here
    ray_temp_dir: str | None = None  # of a Ray started here
    dashboard_url: str = ""  # of a Ray started here, if it has one
    url: str = ""  # of the router; empty until it is ready
    model: str = ""
    plan: tuple[str, ...] = ()  # what the planner said of the pools, in lines; empty: the configuration named them


class StateDir:
    """The folder of one checkout's state: the record of the running cluster, and the runs' logs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / "cluster.json"

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> StateDir:
        """Take the folder from BATON_STATE_DIR, else `.baton` of the checkout."""
        given = environ.get(STATE_DIR_VARIABLE)
        return cls(Path(given).absolute() if given else CHECKOUT / ".baton")

    def new_run(self, name: str) -> Path:
        """Make a folder for the logs of one run; only its owner may look into it."""
        run_dir = self.path / "runs" / name
        run_dir.mkdir(parents=True, mode=0o700)
        return run_dir

    def read(self) -> ClusterRecord | None:
        """Return the record; None when there is none, or none that can be understood."""
        try:
            raw = json.loads(self._file.read_text())
            for key in ("starter", "ray"):
                raw[key] = None if raw[key] is None else ProcessIdentity(**raw[key])
            raw["plan"] = tuple(raw.get("plan", ()))
            return ClusterRecord(**raw)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def claim(self, record: ClusterRecord) -> bool:
        """Write the first record of a cluster; False when another is recorded."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self._draft(record)
        try:
            os.link(draft, self._file)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def write(self, record: ClusterRecord) -> None:
        """Replace the record, in one step."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._draft(record).replace(self._file)

    def update_starter(self, record: ClusterRecord, pid: int) -> ClusterRecord:
        """Note that process `pid` now answers for the cluster; return the new record."""
        identity = ProcessIdentity.of(pid)
        assert identity is not None
        changed = replace(record, starter=identity)
        self.write(changed)
        return changed

    def remove(self) -> None:
        """Forget the record; idempotent."""
        with contextlib.suppress(FileNotFoundError):
            self._file.unlink()

    def _draft(self, record: ClusterRecord) -> Path:
        draft = self._file.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(asdict(record), indent=1) + "\n")
        return draft
