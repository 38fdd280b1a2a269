"""Stages are read out of a router's text and divided by what a run added."""

from __future__ import annotations

from bench.serving.stages import stages_between, totals_in

BEFORE = """
baton_ttft_stage_seconds_sum{stage="queue"} 1.0
baton_ttft_stage_seconds_count{stage="queue"} 10.0
baton_ttft_stage_seconds_sum{stage="prefill"} 2.0
baton_ttft_stage_seconds_count{stage="prefill"} 10.0
"""


def test_the_difference_is_what_the_run_added() -> None:
    after = BEFORE.replace(" 1.0", " 1.5").replace(" 2.0", " 3.0").replace(" 10.0", " 20.0")
    found = stages_between(totals_in(BEFORE), totals_in(after))
    assert found is not None
    assert (dict(found.mean_ms), found.requests) == ({"queue": 50.0, "prefill": 100.0}, 10)


def test_what_is_no_router_has_no_stages() -> None:
    assert totals_in("vllm:num_requests_running 0\n") is None
    assert stages_between(None, totals_in(BEFORE)) is None
    assert stages_between(totals_in(BEFORE), totals_in(BEFORE)) is None
