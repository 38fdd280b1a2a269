"""A proof says the same as text, JSON and page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.serving.metrics import Targets, measure
from bench.serving.parity import Parity
from bench.serving.proof import Calibration, PlannedFor, Proof, RatePoint, SlowestTimeline, Verdict, judge
from bench.serving.proof_report import proof_json, proof_lines, proof_page
from bench.serving.stages import Stages
from sim.plan import Interval
from tests.support.bench_answers import poisson, run_of
from tests.support.html_pages import check

FAST = Targets(400, 60)
TARGETS = {"fast": FAST, "batch": Targets(30_000, 500), "": FAST}
CURVE = (RatePoint(1.0, {"fast": 1.0, "batch": 1.0}, 1.0), RatePoint(2.0, {"fast": 0.5, "batch": 1.0}, 1.5))
PLAN = PlannedFor(2.0, Interval(1.5, 2.0, 2.5), {"fast": Interval(0.9, 0.94, 0.97)}, CURVE)


@pytest.fixture
def proof() -> Proof:
    run = run_of([*poisson(200, 1, slo_class="fast"), *poisson(100, 2, slo_class="batch")])
    metrics = measure(run, TARGETS)
    return Proof(
        config="x<y>.yaml",
        url="http://a",
        model="m",
        rate=2.0,
        traffic="chat",
        classes=judge(metrics, run, TARGETS, PLAN),
        metrics=metrics,
        run=run,
        targets=TARGETS,
        parity=Parity(4, 3, ()),
        ledger=(),
        calibration=(Calibration("fast", "ttft", 0.91, True, ""),),
        stages=Stages({"queue": 1.5, "prefill": 20.0}, 300),
        plan=PLAN,
        curve=CURVE,
        devices=2,
        slowest=SlowestTimeline("id<1>", (("queue", 5.0), ("prefill", 0.0), ("transfer_exposed", 15.0)), 80.0),
        notes=("a note",),
    )


def test_text(proof: Proof) -> None:
    text = "\n".join(proof_lines(proof))
    for words in (
        "x<y>.yaml: the promise is kept",
        "94 % (90..97)",
        "keeps the promise up to 2.0",
        "3 greedy answers of a pair",
        "balanced on every worker",
        "fast ttft 91 % of 0",
        "note: a note",
    ):
        assert words in text, text
    assert proof.verdict is Verdict.KEPT


def test_json(proof: Proof) -> None:
    found = json.loads(json.dumps(proof_json(proof), allow_nan=False))
    assert (found["ok"], found["verdict"]) == (True, "kept")
    assert [c["slo_class"] for c in found["classes"]] == ["fast", "batch"]
    assert found["classes"][0]["planned_interval"] == [0.9, 0.97]
    assert found["classes"][1]["planned"] is None
    assert found["plan"]["goodput_interval"] == [1.5, 2.5]
    assert found["curve"][1]["attainment"]["fast"] == 0.5


def test_the_page(proof: Proof) -> None:
    text = proof_page(proof)
    check(text)
    assert text.count("<svg") == 3
    assert "queue 5.0 ms, transfer_exposed 15.0 ms, output 80.0 ms" in text
    for words in ("attainment against SLO scale", "planned", "Where the time to the first token went"):
        assert words in text


def test_predictions_outside_their_band_are_an_open_question(proof: Proof) -> None:
    wide = (Calibration("fast", "ttft", 0.17, True, "", 24, (0.75, 1.0)),)
    text = "\n".join(proof_lines(replace(proof, calibration=wide)))
    assert "fast ttft 17 % of 24; outside the band that chance allows: fast ttft" in text


def test_too_few_outcomes_are_an_open_question(proof: Proof) -> None:
    few = (Calibration("fast", "ttft", 0.9, False, "30 of 50 outcomes were seen", 30, (0.75, 1.0)),)
    assert "fast ttft 90 % of 30: too few to tell yet" in "\n".join(proof_lines(replace(proof, calibration=few)))


def test_what_is_wrong_is_said_everywhere(proof: Proof) -> None:
    broken = replace(
        proof,
        ledger=("decode-0: 3 blocks are missing",),
        parity=Parity(4, 4, ("token 2 differs",)),
        calibration=(Calibration("fast", "tpot", 0.5, False, "off by 2x", 200, (0.8, 1.0), True),),
        plan=None,
    )
    text, page = "\n".join(proof_lines(broken)), proof_page(broken)
    for words in ("not kept", "3 blocks are missing", "token 2 differs", "off by 2x", "not planned"):
        assert words in text
        assert words in page
    assert proof_json(broken)["ok"] is False
    unknown = replace(proof, ledger=None, calibration=(), parity=Parity(4, 0, ()), stages=None)
    check(proof_page(unknown))
    assert "not tested" in "\n".join(proof_lines(unknown))
