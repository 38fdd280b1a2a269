"""What was found of a scene, as a value and as a file, so that a run that was stopped goes on where it was.

Owns the file's form. Must not compute.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.fleet.goodput import Measured


@dataclass(frozen=True, slots=True)
class Run:
    """How much is simulated, and of what."""

    data: str  # folder of the traces; "": made-up requests
    requests: int  # of each trace, times what its traffic says; pools are chosen on the first of them
    draws: int  # the trace itself, and resampled ones
    kv_gbit_s: float
    chosen_on: int

    @property
    def tag(self) -> str:
        """Tell runs apart whose results must not be mixed."""
        kind = "traces" if self.data else "made-up"
        return f"{kind}-{self.requests}-{self.chosen_on}-{self.draws}-{self.kv_gbit_s:g}"


@dataclass(frozen=True, slots=True)
class SystemFound:
    """One system of a scene."""

    name: str
    pools: str  # "": none keeps the promise
    measured: Measured


@dataclass(frozen=True, slots=True)
class SceneFound:
    """All of one scene."""

    fleet: str
    gpus: int
    traffic: str
    promise: str
    verdict: str  # the planner's
    planned: str  # name of the system that it chose; "": none keeps the promise
    systems: tuple[SystemFound, ...]
    cpu_s: float
    foreseen: tuple[float, ...] = ()  # requests/s, by the planner: of its best one pool, and prefill and decode apart

    @property
    def name(self) -> str:
        """Fleet, traffic and promise."""
        return f"{self.fleet}, {self.traffic}, {self.promise}"

    def of(self, name: str) -> SystemFound | None:
        """Find a system; None: it is not in this scene."""
        return next((system for system in self.systems if system.name == name), None)

    def goodput(self, name: str) -> tuple[float, ...]:
        """Return requests/s for each GPU by draw."""
        system = self.of(name)
        return tuple(rate / self.gpus for rate in system.measured.goodput) if system else ()


def file_of(folder: Path, scene: str, run: Run) -> Path:
    """Name the file of a scene."""
    plain = "".join(c if c.isalnum() or c in "-." else "-" for c in scene.lower())
    return folder / f"{plain}-{run.tag}.json"


def write(file: Path, found: SceneFound) -> None:
    """Keep a scene; a run that is stopped leaves whole files only."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    part.replace(file)


def read(file: Path) -> SceneFound | None:
    """Read a scene again; None when it is not there."""
    if not file.exists():
        return None
    fields = json.loads(file.read_text(encoding="utf-8"))
    systems = tuple(
        SystemFound(
            system["name"],
            system["pools"],
            Measured(tuple(system["measured"]["goodput"]), tuple((x, y) for x, y in system["measured"]["curve"])),
        )
        for system in fields.pop("systems")
    )
    return SceneFound(**fields | {"foreseen": tuple(fields.get("foreseen", ()))}, systems=systems)
