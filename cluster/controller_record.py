"""What a controller writes down so that the one Ray makes in its place can go on: a file in the folder of the run.

Owns the form of that file. It holds what hosts cannot tell: what is wanted, epochs, names of actors in Ray, ports. Not
the cluster's token. Monotonic times stay true, for the controller is made anew on the machine it was on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from cluster.child import write_private
from cluster.cluster_status import ClusterEvent, DecisionStatus
from cluster.members import Member
from cluster.placement import WorkerPlacement
from cluster.router_keeper import RouterPlace
from core.config.models import BatonConfig
from core.control.actions import PoolSizes
from core.control.reconcile import Phase
from core.types import Role

RECORD_FILE: Final = "controller.json"
EVENTS_RECORDED: Final = 50


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One worker."""

    worker_id: str
    role: Role
    phase: Phase
    log_path: str
    revision: str
    epoch: int
    placement: WorkerPlacement | None
    host_name: str
    cores: tuple[int, ...]
    failures_s: tuple[float, ...]
    retry_at_s: float
    leaves: bool
    reason: str
    wished_s: float
    role_since_s: float

    @classmethod
    def of(cls, member: Member) -> MemberRecord:
        """Write a member down."""
        return cls(**{name: getattr(member, name) for name in cls.__dataclass_fields__})

    def member(self) -> Member:
        """Make the member, as it was."""
        return Member(**{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def read(cls, raw: Mapping[str, object]) -> MemberRecord:
        """Read one entry of the file."""
        fields = dict(raw)
        placement = fields.pop("placement")
        assert placement is None or isinstance(placement, dict)
        made = None if placement is None else WorkerPlacement(**{**placement, "role": Role(placement["role"])})
        for name in ("cores", "failures_s"):
            fields[name] = tuple(fields[name])  # type: ignore[arg-type]
        role, phase = Role(str(fields.pop("role"))), Phase(str(fields.pop("phase")))
        return cls(role=role, phase=phase, placement=made, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ControllerRecord:
    """Everything."""

    config: BatonConfig
    base: str  # folder that relative paths of it begin in
    begin_s: float  # when the cluster began
    membership_port: int
    membership_version: int
    sizes: PoolSizes
    leaving: dict[str, float | None]
    renewing: dict[str, float | None]
    router: RouterPlace
    members: tuple[MemberRecord, ...]
    events: tuple[ClusterEvent, ...]
    decisions: tuple[DecisionStatus, ...]

    def write(self, run_dir: Path) -> None:
        """Replace the file, in one step."""
        draft = run_dir / f"{RECORD_FILE}.{os.getpid()}.tmp"
        raw = asdict(replace(self, config=BatonConfig())) | {"config": self.config.model_dump(mode="json")}
        write_private(draft, json.dumps(raw))
        draft.replace(run_dir / RECORD_FILE)

    @classmethod
    def read(cls, run_dir: Path) -> ControllerRecord | None:
        """Read the file; None when there is none, or none that can be understood."""
        try:
            raw = json.loads((run_dir / RECORD_FILE).read_text())
            raw["config"] = BatonConfig.model_validate(raw["config"])
            raw["sizes"] = PoolSizes(**raw["sizes"])
            raw["router"] = RouterPlace(**raw["router"])
            raw["members"] = tuple(MemberRecord.read(entry) for entry in raw["members"])
            raw["events"] = tuple(ClusterEvent(**entry) for entry in raw["events"])
            raw["decisions"] = tuple(_decision(entry) for entry in raw["decisions"])
            return cls(**raw)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _decision(raw: Mapping[str, object]) -> DecisionStatus:
    fields = dict(raw)
    wanted, flips = fields.pop("wanted"), fields.pop("flips")
    assert isinstance(wanted, dict)
    assert isinstance(flips, list)
    return DecisionStatus(wanted=PoolSizes(**wanted), flips=tuple(flips), **fields)  # type: ignore[arg-type]
