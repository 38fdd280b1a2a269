"""Metrics are those of `vllm bench serve`, on the very same answers; attainment counts all that were promised."""

from __future__ import annotations

import math
from array import array

import numpy as np
import pytest

from bench.serving.client_health import ClientHealth
from bench.serving.load_run import Run
from bench.serving.metrics import Targets, measure, parse_goodput
from bench.serving.timing import Timing
from core.errors import ConfigError

QUIET = ClientHealth(0.1, 0.0, 1.0, 1.0)


def answered(sent_s: float, gaps_s: list[float], *, tokens: int | None = None, slo_class: str = "") -> Timing:
    times = array("d", np.cumsum([sent_s, *gaps_s])[1:].tolist())
    return Timing(
        sent_s,
        times,
        due_s=sent_s,
        ended_s=times[-1],
        prompt_tokens=10,
        output_tokens=tokens or len(times),
        slo_class=slo_class,
    )


def drawn(count: int) -> list[Timing]:
    rng = np.random.default_rng(4)
    found = []
    for i in range(count):
        gaps = [float(g) for g in rng.exponential(0.02, rng.integers(1, 9))]
        found.append(answered(100.0 + i * 0.01, [0.1 + 0.1 * rng.random(), *gaps]))
    return found


def test_goodput_flags() -> None:
    assert parse_goodput(["ttft:400", "tpot:40.5"]) == Targets(400.0, 40.5)
    for wrong in ("ttft", "ttft:x", "itl:3", "tpot:-1"):
        with pytest.raises(ConfigError, match=f"--goodput {wrong}: write"):
            parse_goodput([wrong])


@pytest.mark.slow
def test_the_figures_are_those_that_vllm_computes_from_the_same_answers() -> None:
    serve = pytest.importorskip("vllm.benchmarks.serve")
    timings = [*drawn(300), Timing(101.0, due_s=101.0, error="status 500: x")]
    outputs = [
        serve.RequestFuncOutput(
            success=t.is_complete,
            latency=t.e2el_ms / 1e3 if t.is_complete else 0.0,
            output_tokens=t.output_tokens,
            ttft=t.ttft_ms / 1e3 if t.is_complete else 0.0,
            itl=[gap / 1e3 for gap in t.itl_ms],
            prompt_len=t.prompt_tokens,
            start_time=t.sent_s,
        )
        for t in timings
    ]
    theirs, _ = serve.calculate_metrics([], outputs, 5.0, None, [50, 90, 99, 99.9], {"ttft": 180.0, "tpot": 22.0})
    ours = measure(Run(timings, 5.0, QUIET, 100.0), {"": Targets(180.0, 22.0)}, percentiles=(50, 90, 99, 99.9))
    for name in (
        *("completed", "failed", "request_throughput", "request_goodput", "output_throughput"),
        *("total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"),
    ):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name)), name
    for name, found in ours.distributions.items():
        assert found.mean.mid == pytest.approx(getattr(theirs, f"mean_{name}_ms")), name
        assert found.std == pytest.approx(getattr(theirs, f"std_{name}_ms")), name
        assert [e.mid for _, e in found.percentiles] == pytest.approx(
            [value for _, value in getattr(theirs, f"percentiles_{name}_ms")]
        )


def test_refused_and_failed_requests_missed_their_targets_and_those_that_left_count_for_nothing() -> None:
    timings = [
        answered(0.0, [0.1, 0.01], slo_class="a"),
        answered(0.1, [0.3, 0.01], slo_class="a"),
        Timing(0.2, due_s=0.2, error="status 429: later", is_refused=True, slo_class="a"),
        Timing(0.3, array("d", [0.4]), due_s=0.3, is_cancelled=True, slo_class="a"),
        answered(0.4, [0.3, 0.01], slo_class="b"),
        answered(0.5, [0.1]),
    ]
    found = measure(Run(timings, 2.0, QUIET), {"a": Targets(200, 50), "b": Targets(1000, 50)})
    assert (found.completed, found.failed, found.refused, found.cancelled, found.good) == (4, 1, 1, 1, 2)
    shares = {each.name: (each.attainment.mid, each.attainment.count) for each in found.classes}
    assert shares == {"a": (pytest.approx(1 / 3), 3), "b": (1.0, 1)}
    assert found.request_goodput == 1.0
    assert found.success.mid == 0.8


def test_the_warm_up_does_not_count() -> None:
    timings = [answered(100.0, [5.0]), answered(101.0, [0.1]), answered(102.0, [0.1])]
    found = measure(Run(timings, 4.0, QUIET, 100.0), {}, warm_up_s=1.0)
    assert (found.completed, found.duration_s) == (2, 3.0)
    assert found.distributions["ttft"].mean.mid == pytest.approx(100.0)


def test_nothing_answered_is_told_and_not_a_fault() -> None:
    found = measure(Run([Timing(0.0, error="x"), Timing(0.0, error="x")], 1.0, QUIET), {"": Targets(1, 1)})
    assert (found.completed, found.errors, found.request_throughput) == (0, (("x", 2),), 0.0)
    assert math.isnan(found.distributions["ttft"].mean.mid)
    assert found.classes[0].attainment.mid == 0.0


def test_a_short_run_says_so_and_a_long_steady_one_does_not() -> None:
    short = measure(Run([answered(i, [0.1 if i % 2 else 0.3]) for i in range(20)], 20.0, QUIET), {"": Targets(200)})
    assert any("attainment is known to" in remark for remark in short.remarks)
    assert any("P75" in remark or "P9" in remark for remark in short.remarks)
    rng = np.random.default_rng(1)
    steady = [answered(float(i), [float(rng.uniform(0.05, 0.25))]) for i in range(4000)]
    assert measure(Run(steady, 4000.0, QUIET), {"": Targets(200)}, percentiles=(50, 99)).remarks == ()


def test_a_queue_that_grows_is_noticed() -> None:
    growing = [answered(float(i), [0.05 + 0.001 * i]) for i in range(400)]
    found = measure(Run(growing, 400.0, QUIET), {"": Targets(250)})
    assert any(remark.startswith("attainment fell") for remark in found.remarks)
    assert any(remark.startswith("TTFT rose") for remark in found.remarks)


def test_a_client_that_was_the_bottleneck_says_so() -> None:
    assert QUIET.problems == ()
    problems = " ".join(ClientHealth(0.95, 0.4, 30.0, 50.0).problems)
    assert all(
        words in problems for words in ("95% of its core", "30 ms late", "50 ms late", "waited 40% for a free core")
    )
