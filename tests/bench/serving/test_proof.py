"""Verdicts follow the interval, and one broken thing breaks the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.serving.client_health import ClientHealth
from bench.serving.load_run import Run
from bench.serving.metrics import ClassTargets, Targets, measure
from bench.serving.parity import Parity
from bench.serving.proof import ClassVerdict, PlannedFor, Proof, Verdict, foreseen, judge
from bench.serving.timing import Timing
from sim.plan import Interval
from tests.support.bench_answers import QUIET, answered, run_of

TARGETS: ClassTargets = {"fast": Targets(200, 50, attainment=0.9)}


def judged(kept: int, missed: int, health: ClientHealth = QUIET) -> ClassVerdict:
    """Judge a run in which misses are spread evenly."""
    total = kept + missed
    is_missed = {round((i + 0.5) * total / missed) for i in range(missed)} if missed else set()
    timings = [answered(float(i), 0.5 if i in is_missed else 0.1, slo_class="fast") for i in range(total)]
    run = replace_health(run_of(timings), health)
    (found,) = judge(measure(run, TARGETS), run, TARGETS, None)
    return found


def replace_health(run: Run, health: ClientHealth) -> Run:
    return replace(run, health=health)


@pytest.mark.parametrize(
    ("kept", "missed", "verdict"),
    [
        (100, 0, Verdict.KEPT),
        (98, 2, Verdict.KEPT),
        (92, 8, Verdict.CANNOT_TELL),
        (88, 12, Verdict.CANNOT_TELL),
        (70, 30, Verdict.NOT_KEPT),
        (5, 0, Verdict.CANNOT_TELL),
        (1, 30, Verdict.NOT_KEPT),
    ],
)
def test_the_interval_decides(kept: int, missed: int, verdict: Verdict) -> None:
    found = judged(kept, missed)
    assert found.verdict is verdict, found
    assert ("run longer" in found.why) == (verdict is Verdict.CANNOT_TELL)


def test_what_the_client_may_have_caused_is_not_held_against_the_server() -> None:
    late = ClientHealth(0.99, 0.5, 80.0, 0.0)
    assert judged(70, 30, late).verdict is Verdict.CANNOT_TELL
    assert judged(100, 0, late).verdict is Verdict.KEPT


def test_a_class_without_requests_is_an_open_question() -> None:
    run = run_of([Timing(0.0, error="x")])
    (found,) = judge(measure(run, TARGETS), run, TARGETS, None)
    assert (found.verdict, found.why) == (Verdict.CANNOT_TELL, "no request of it was sent")


def proof(*classes: Verdict, parity: Parity | None = None, ledger: tuple[str, ...] | None = ()) -> Proof:
    run = run_of([answered(float(i), 0.1, slo_class="fast") for i in range(50)])
    metrics = measure(run, TARGETS)
    template = judge(metrics, run, TARGETS, PlannedFor(1.0, Interval(1, 2, 3), {"fast": Interval(0.9, 0.95, 1.0)}))[0]
    return Proof(
        config="x.yaml",
        url="http://a",
        model="m",
        rate=1.0,
        traffic="chat",
        classes=tuple(replace(template, verdict=verdict) for verdict in classes),
        metrics=metrics,
        run=run,
        targets=TARGETS,
        parity=parity or Parity(4, 4, ()),
        ledger=ledger,
        calibration=(),
        stages=None,
        plan=None,
    )


def test_the_whole_is_as_good_as_its_worst_part() -> None:
    kept, missed, unknown = Verdict.KEPT, Verdict.NOT_KEPT, Verdict.CANNOT_TELL
    assert proof(kept, kept).verdict is kept
    assert proof(kept, unknown).verdict is unknown
    assert proof(unknown, missed).verdict is missed
    assert proof().verdict is unknown
    assert proof(kept, ledger=None).verdict is kept
    assert proof(kept, ledger=("decode-0: 3 blocks are missing",)).verdict is missed
    assert proof(kept, parity=Parity(4, 4, ("token 2 differs",))).verdict is missed
    assert proof(kept, parity=Parity(4, 0, ())).verdict is kept


def test_what_was_foreseen_is_compared_request_by_request() -> None:
    told = [Timing(0.0, told={"predicted_ttft_ms": 100.0, "ttft_ms": 10.0 * n}) for n in range(1, 22)]
    found = foreseen([*told, Timing(0.0), Timing(0.0, told={"predicted_ttft_ms": None, "ttft_ms": 5.0})])
    assert found is not None
    assert (found.requests, found.low, found.median, found.high) == (21, pytest.approx(0.2), 1.1, pytest.approx(2.0))
    assert foreseen([Timing(0.0)]) is None
