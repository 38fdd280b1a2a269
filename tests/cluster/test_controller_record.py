"""What a controller writes down is what the next one reads."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.cluster_status import ClusterEvent, DecisionStatus
from cluster.controller_record import RECORD_FILE, ControllerRecord, MemberRecord
from cluster.members import Member
from cluster.placement import WorkerPlacement
from cluster.router_keeper import RouterPlace
from core.config.models import BatonConfig, ModelConfig
from core.control.actions import PoolSizes
from core.control.reconcile import Phase
from core.types import Role

PLACED = Member(
    "decode-1", Role.PREFILL, Phase.DRAINING, "/r/decode-1.log", revision="ab", epoch=4, cores=(2, 3),
    placement=WorkerPlacement("decode-1", Role.DECODE, "n1", "10.0.0.1", 2.0, 1, {"CPU": 2.0, "GPU": 1.0}),
    host_name="decode-1.5", failures_s=(1.5, 2.5), retry_at_s=9.0, leaves=True, reason="told to",
)  # fmt: skip
BARE = Member("prefill-0", Role.PREFILL, Phase.SET_ASIDE, "/r/prefill-0.log")
RECORD = ControllerRecord(
    config=BatonConfig(model=ModelConfig(path="/models/x")),
    base="/work",
    begin_s=12.5,
    membership_port=4000,
    membership_version=17,
    sizes=PoolSizes(1, 2),
    leaving={"decode-1": None},
    renewing={"prefill-0": 3.0},
    router=RouterPlace("router", 2, 8000),
    members=(MemberRecord.of(PLACED), MemberRecord.of(BARE)),
    events=(ClusterEvent(3, 1.5, "decode-1", "drains", True), ClusterEvent(4, 2.5, "decode-0", "ready", took_s=1.5)),
    decisions=(
        DecisionStatus(
            1,
            2.5,
            1e9,
            "decider",
            PoolSizes(2, 1),
            ("decode-1 becomes prefill",),
            "late",
            {"rate": 2.0},
            "done",
            3.5,
            "worse",
        ),
    ),
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    assert ControllerRecord.read(tmp_path) == RECORD
    assert stat.S_IMODE((tmp_path / RECORD_FILE).stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [RECORD_FILE]


def test_a_member_is_what_it_was_but_for_what_its_host_tells() -> None:
    again = MemberRecord.of(PLACED).member()
    assert again.state() == PLACED.state()
    assert (again.epoch, again.cores, again.placement) == (4, (2, 3), PLACED.placement)
    assert (again.host, again.record, again.hello) == (None, None, None)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {"model": 1}}'])
def test_a_record_that_cannot_be_understood_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    assert ControllerRecord.read(tmp_path) is None


def test_there_may_be_no_record(tmp_path: Path) -> None:
    assert ControllerRecord.read(tmp_path) is None
