"""`baton plan` and the planner of `pools: auto`, with a search that answers what the test wants to see shown."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from core.config.load import load_config
from core.config.models import BatonConfig
from core.errors import ConfigError
from core.latency.profile import profile_to_json
from core.planning import Inventory, NodeInventory
from sim.cluster import Admission, ClusterSpec, Routing
from sim.device_groups import DeviceFlags
from sim.plan import Plan, PlanQuestion, Progress, Shortfall, Verdict
from sim.plan_command import INFEASIBLE, OK, Output, ProgressLine, plan_pools, run
from sim.questions import PlanFlags
from sim.search.referee import Referee, own_policy_rate
from tests.support.plans import CHAT, apart, candidate, plan, profile, together


@dataclass
class Answers:
    """A search with a given answer, which keeps the question."""

    answer: Plan
    questions: list[PlanQuestion] = field(default_factory=list)

    referees: list[Referee | None] = field(default_factory=list)

    def __call__(
        self, question: PlanQuestion, *, progress: Progress | None = None, referee: Referee | None = None
    ) -> Plan:
        self.questions.append(question)
        self.referees.append(referee)
        if progress is not None:
            progress(done=3, total=12, best=self.answer.best)
        return self.answer


class Terminal(io.StringIO):
    """A stream that people look at."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


ROUTED = Routing(admission=Admission.TTFT)


def feasible(cluster: ClusterSpec | None = None) -> Plan:
    one = candidate(together(2), (1.0, 1.1, 1.2), group=(0,))
    return plan(p_d=candidate(cluster or apart(1, 2), (2.8, 3.0, 3.2)), one=one)


def infeasible() -> Plan:
    short = Shortfall("chat.ttft_ms", (replace(CHAT, ttft_s=0.7),), 2.5, "prefill is full")
    return plan(verdict=Verdict.INFEASIBLE, p_d=candidate(apart(1, 2), (2.8, 3.0, 3.2)), shortfall=short)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "p.json").write_text(profile_to_json(profile()))
    file = tmp_path / "c.yaml"
    file.write_text(f"# mine\nplan: {{profile: {tmp_path}/p.json, gpus: 3}}\npools: auto\n")
    return file


def done(file: Path, answer: Plan, *, as_json: bool = False, write: Path | None = None) -> tuple[int, str, str]:
    output = Output(io.StringIO(), io.StringIO(), as_json=as_json, write=write)
    code = run(load_config(file, environ={}), file, PlanFlags(num_requests=200), output, Answers(answer))
    assert isinstance(output.out, io.StringIO)
    assert isinstance(output.err, io.StringIO)
    return code, output.out.getvalue(), output.err.getvalue()


def test_a_plan_is_shown_with_the_block_that_up_takes(file: Path) -> None:
    code, out, err = done(file, feasible())
    assert (code, err) == (OK, "")
    assert out.startswith("P/D pays: P/D 1 x tp1 + 2 x tp1 carries 3.00 (2.80..3.20) requests/s")
    assert "\npools:\n  prefill:\n    replicas: 1\n    tensor_parallel: 1\n" in out
    assert "slo-aware" not in out


def test_a_promise_that_cannot_be_kept_is_exit_code_3(file: Path) -> None:
    code, out, _ = done(file, infeasible())
    assert code == INFEASIBLE
    assert "chat.ttft_ms: prefill is full" in out


def test_json_is_all_that_is_printed_then(file: Path) -> None:
    code, out, _ = done(file, infeasible(), as_json=True)
    value = json.loads(out)
    assert (code, value["ok"], value["pools"]["decode"]["replicas"]) == (INFEASIBLE, False, 2)


def test_a_written_file_has_the_plan_and_keeps_the_rest(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "planned.yaml"
    _, _, err = done(file, feasible(apart(1, 2, routing=ROUTED)), write=target)
    assert err == f"written: {target}\n"
    assert target.read_text().startswith("# mine\n")
    config = load_config(target, environ={})
    assert config.pools != "auto"
    assert (config.pools.decode.replicas, config.router.policy) == (2, "slo-aware")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "p.json", "planned.yaml"]


def test_the_file_itself_may_be_written_but_no_other_that_exists(file: Path, tmp_path: Path) -> None:
    done(file, feasible(), write=file)
    assert load_config(file, environ={}).pools != "auto"
    other = tmp_path / "other.yaml"
    other.write_text("{}")
    with pytest.raises(ConfigError, match="the file exists"):
        done(file, feasible(), write=other)
    with pytest.raises(ConfigError, match="there is no folder"):
        done(file, feasible(), write=tmp_path / "no" / "c.yaml")


def test_what_the_file_does_not_say_is_named(file: Path, tmp_path: Path) -> None:
    promise = "slo={classes: {chat: {ttft_ms: 200, tpot_ms: 40}}}"
    config = load_config(file, environ={}, overrides=[promise, "plan.gpus=2"])
    err = io.StringIO()
    output = Output(io.StringIO(), err, write=tmp_path / "planned.yaml")
    run(config, file, PlanFlags(num_requests=200), output, Answers(feasible()))
    assert "what --set or BATON_ variables say of slo was planned for and is not in the file" in err.getvalue()


def test_a_file_that_is_written_again_keeps_its_link_and_its_mode(file: Path, tmp_path: Path) -> None:
    file.chmod(0o600)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    done(link, feasible(), write=link)
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_config(file, environ={}).pools != "auto"


def test_only_what_changes_is_set_outside_the_pools(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "planned.yaml"
    _, out, _ = done(file, feasible(), write=target)
    assert "whole_below" not in out + target.read_text()
    file.write_text(file.read_text() + "router: {whole_below_tokens: 64}\n")
    _, out, _ = done(file, feasible(), write=file)
    assert out.endswith("router:\n  whole_below_tokens: 0\n")
    assert load_config(file, environ={}).router.whole_below_tokens == 0


def test_the_first_use_says_that_it_compiles(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(feasible())
    monkeypatch.setattr("sim.search.search", answers)
    monkeypatch.setattr("sim.kernel.compiled.CACHE", tmp_path)
    told = []
    for _ in range(2):
        err = io.StringIO()
        run(load_config(file, environ={}), file, PlanFlags(), Output(io.StringIO(), err))
        told.append(err.getvalue())
        (tmp_path / "run.1.nbc").touch()
    assert told == ["compiling the simulator, once: about half a minute\n", ""]
    assert answers.referees == [own_policy_rate] * 2  # between the families the router's own policy decides


def test_a_plan_that_needs_predictions_without_a_profile_says_so(file: Path) -> None:
    kinds = PlanFlags(devices=DeviceFlags(kinds=("h100-sxm",), counts=(3,)), num_requests=200)
    out = io.StringIO()
    config = BatonConfig()  # the demonstration model, whose config.json ships
    run(config, file, kinds, Output(out, io.StringIO()), Answers(feasible(apart(1, 2, routing=ROUTED))))
    assert "router policy slo-aware, which needs a measured profile" in out.getvalue().replace("\n  ", " ")
    assert "policy: slo-aware" not in out.getvalue()


def test_progress_is_one_line_on_a_terminal_and_gone_at_the_end(file: Path) -> None:
    err = Terminal()
    run(load_config(file, environ={}), file, PlanFlags(), Output(io.StringIO(), err), Answers(feasible()))
    assert "██████" in err.getvalue()
    assert "3/12  best 3.00 (2.80..3.20) requests/s: P/D 1 x tp1" in err.getvalue()
    assert "\n" not in err.getvalue()
    assert err.getvalue().endswith("\r")


def test_progress_never_outgrows_the_terminal() -> None:
    err = Terminal()
    line = ProgressLine(err, columns=40)
    line(done=1, total=0, best=feasible().best)
    line(done=1, total=0, best=feasible().best)
    assert [len(text) for text in err.getvalue().split("\r")] == [0, 39]


def inventory(*gpus: int, kind: str = "") -> Inventory:
    return Inventory(tuple(NodeInventory(f"n{i}", 8.0, n, kind if n else "") for i, n in enumerate(gpus)))


def test_up_gets_pools_for_what_the_cluster_has(file: Path) -> None:
    search = Answers(feasible(apart(1, 2, routing=ROUTED)))
    heard: list[None] = []
    config = load_config(file, environ={})
    planned = plan_pools(config, inventory(2, 1, kind="gpu-a"), check=lambda: heard.append(None), search=search)
    assert [(g.nodes, g.devices_per_node) for g in search.questions[0].groups] == [(1, 2), (1, 1)]
    assert (planned.pools.prefill.replicas, planned.pools.decode.replicas) == (1, 2)
    assert (planned.policy, planned.whole_below_tokens, planned.shortfall) == ("slo-aware", 0, "")
    assert planned.lines[0].startswith("P/D pays: P/D 1 x tp1 + 2 x tp1 carries 3.00 (2.80..3.20) requests/s")
    assert len(planned.lines) <= 10
    assert json.loads(planned.plan_json)["ok"]
    assert heard


def test_up_without_gpus_counts_workers_of_the_cpu_profile(file: Path) -> None:
    search = Answers(feasible())
    config = load_config(file, environ={}, overrides=["plan.cpus=4", "plan.gpus=null"])
    plan_pools(config, inventory(0, 0), check=lambda: None, search=search)
    assert [(g.nodes, g.devices_per_node) for g in search.questions[0].groups] == [(2, 2)]


def test_up_is_told_why_the_promise_cannot_be_kept(file: Path) -> None:
    planned = plan_pools(load_config(file, environ={}), inventory(3), check=lambda: None, search=Answers(infeasible()))
    assert planned.pools.decode.replicas == 2
    assert "chat.ttft_ms: prefill is full" in planned.shortfall
    assert "up to 2.5 requests/s" in planned.shortfall


def test_up_cannot_plan_for_kinds_that_it_must_guess(file: Path) -> None:
    nodes = (NodeInventory("a", 8, 1, "A100"), NodeInventory("b", 8, 1, "H100"))
    with pytest.raises(ConfigError, match="kinds A100, H100; name the one"):
        plan_pools(BatonConfig(pools="auto"), Inventory(nodes), check=lambda: None, search=Answers(feasible()))


def test_up_says_when_nothing_fits(file: Path) -> None:
    short = Shortfall("rate", (CHAT,), None, "no room")
    nothing = Answers(plan(verdict=Verdict.INFEASIBLE, shortfall=short))
    with pytest.raises(ConfigError, match="not even one worker fits"):
        plan_pools(load_config(file, environ={}), inventory(3), check=lambda: None, search=nothing)
