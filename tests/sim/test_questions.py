"""From configuration and flags to a question, with everything that was assumed in the notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.config.models import BatonConfig
from core.errors import ConfigError
from sim.device_groups import Devices
from sim.outcome import Target
from sim.plan import DeviceGroup
from sim.questions import PlanFlags, Prepared, prepare
from tests.support.plans import profile

SLO = {
    "classes": {
        "chat": {"ttft_ms": 400, "tpot_ms": 40},
        "batch": {"ttft_ms": 9000, "tpot_ms": 200, "attainment": 0.5},
    },
    "default": "chat",
}
DEVICES = Devices((DeviceGroup(profile(), 1, 8),), priced=False, notes=("of devices",))


def asked(flags: PlanFlags | None = None, **sections: object) -> Prepared:
    config = BatonConfig.model_validate({"slo": SLO, "model": {"path": "x/m"}, **sections})
    return prepare(config, flags or PlanFlags(), DEVICES)


def trace(folder: Path, rows: int = 300, extra: str = "", header: str = "arrived_s,prompt_tokens,output_tokens") -> str:
    file = folder / "t.csv"
    file.write_text(header + "\n" + "".join(f"{i / 4},{10 + i % 7},5{extra}\n" for i in range(rows)))
    return str(file)


def test_the_promise_is_taken_over_class_by_class() -> None:
    assert asked().question.targets == (Target("chat", 0.4, 0.04), Target("batch", 9.0, 0.2, 0.5))


def test_nothing_said_means_chat_at_any_rate_and_a_note() -> None:
    prepared = asked()
    assert prepared.question.rate is None
    assert prepared.question.workload.name == "chat"
    assert len(prepared.question.workload) == 3000
    assert any("chat is assumed" in note for note in prepared.setting.notes)
    assert "of devices" in prepared.setting.notes


def test_flags_win_over_the_section_plan(tmp_path: Path) -> None:
    plan = {"workload": "code", "rate": 3.0}
    assert asked(plan=plan).question.workload.name == "code"
    assert asked(plan=plan).question.rate == 3.0
    assert asked(PlanFlags(workload="agent", rate=5.0), plan=plan).question.workload.name == "agent"
    prepared = asked(PlanFlags(trace=trace(tmp_path), rate=5.0), plan=plan)
    assert (prepared.question.workload.name, prepared.question.rate) == ("t.csv", 5.0)
    assert prepared.setting.traffic == "t.csv: 300 requests, 13 tokens in and 5 out in the mean, recorded at 4/s"


def test_the_models_limit_leaves_requests_out(tmp_path: Path) -> None:
    prepared = asked(PlanFlags(trace=trace(tmp_path)), model={"path": "x/m", "max_model_len": 20})
    assert prepared.question.workload.prompt_tokens.max() == 15
    assert any("exceed the model's 20 tokens" in note for note in prepared.setting.notes)
    made = asked(PlanFlags(workload="chat"), model={"path": "x/m", "max_model_len": 1000}).question.workload
    assert (made.prompt_tokens + made.output_tokens).max() <= 1000


def test_without_shares_every_request_is_of_the_default_class() -> None:
    prepared = asked()
    assert set(prepared.question.workload.classes().tolist()) == {0}
    assert any("no request of class batch is planned for" in note for note in prepared.setting.notes)
    other = asked(slo=SLO | {"default": "batch"})
    assert set(other.question.workload.classes().tolist()) == {1}


@pytest.mark.parametrize("shares", [("batch=0.25",), ("batch=0.25", "chat=0.75")])
def test_shares_give_classes(shares: tuple[str, ...]) -> None:
    counts = np.bincount(asked(PlanFlags(shares=shares)).question.workload.slo_class)
    assert counts / counts.sum() == pytest.approx([0.75, 0.25], abs=0.03)


def test_a_trace_may_name_the_classes(tmp_path: Path) -> None:
    file = trace(tmp_path, extra=",batch", header="arrived_s,prompt_tokens,output_tokens,slo_class")
    assert set(asked(PlanFlags(trace=file)).question.workload.slo_class.tolist()) == {1}
    with pytest.raises(ConfigError, match="leave --share out"):
        asked(PlanFlags(trace=file, shares=("batch=0.5",)))


def test_prefixes_are_not_shared_where_the_engines_do_not() -> None:
    assert len(asked(PlanFlags(workload="agent")).question.workload.prefix_ids)
    for arguments in ({"enable-prefix-caching": False}, {"no_enable_prefix_caching": True}):
        prepared = asked(PlanFlags(workload="agent"), model={"path": "x/m", "engine_args": arguments})
        assert not len(prepared.question.workload.prefix_start)
        assert any("prefix caching is off" in note for note in prepared.setting.notes)


def test_a_seed_moves_traffic_and_seeds_together() -> None:
    first, other = asked().question, asked(PlanFlags(seed=7)).question
    assert (first.seeds, other.seeds) == ((0, 1, 2), (7, 8, 9))
    assert first.workload.prompt_tokens.tolist() != other.workload.prompt_tokens.tolist()


def test_what_if_fixes_the_cluster() -> None:
    assert asked().question.fixed is None
    fixed = asked(PlanFlags(what_if=("decode=3",))).question.fixed
    assert fixed is not None
    assert fixed.decode.replicas == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (PlanFlags(rate=0.0), "--rate is 0"),
        (PlanFlags(trace="a", workload="chat"), "--trace and --workload exclude each other"),
        (PlanFlags(trace="no/such.csv"), "there is no such trace file"),
        (PlanFlags(workload="chitchat"), "there is no workload 'chitchat'"),
        (PlanFlags(num_requests=20), "--requests is 20; give at least 200"),
        (PlanFlags(shares=("bach=0.2",)), "there is no class 'bach'; the classes are chat, batch"),
        (PlanFlags(shares=("batch=2",)), "with a part from 0 to 1"),
        (PlanFlags(shares=("batch",)), "with a part from 0 to 1"),
        (PlanFlags(shares=("batch=0.5", "chat=0.3")), "do not add up to 1"),
    ],
)
def test_wrong_flags_are_named_with_the_remedy(flags: PlanFlags, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(flags)
    assert words in str(caught.value)


def test_too_short_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="20 requests are left of the trace"):
        asked(replace(PlanFlags(), trace=trace(tmp_path, rows=20)))
