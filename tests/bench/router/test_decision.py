"""The cluster that decisions are timed in is one that can be: counts hold, and what is taken ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.router.decision import Cluster, decisions, decisions_report
from core.errors import ConfigError
from core.types import Role, Route


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans(), st.integers(1, 4000)), max_size=120))
def test_counts_are_those_of_the_requests_that_run(requests: list[tuple[int, int, bool, int]]) -> None:
    cluster = Cluster(3)
    for number, (prefill, decode, is_pair, tokens) in enumerate(requests):
        route = Route(f"decode-{decode}", f"prefill-{prefill}" if is_pair else None, "drawn")
        cluster.take(route, tokens, float(number))
    view = cluster.view()
    assert [w.record.worker_id for w in view.workers] == sorted(w.record.worker_id for w in view.workers)
    decode_workers = view.of_role(Role.DECODE)
    running = min(len(requests), 3 * 8)
    assert sum(w.inflight_requests for w in decode_workers) == running
    kept = requests[len(requests) - running :]
    assert sum(w.inflight_context_tokens for w in decode_workers) == sum(tokens for *_, tokens in kept)
    for worker in view.of_role(Role.PREFILL):
        assert worker.inflight_prompts >= 0
        assert worker.inflight_prompt_tokens >= 0
        assert (worker.prompting_since_s is not None) == (worker.inflight_prompts > 0)


def test_a_policy_is_timed_and_shown() -> None:
    measured = decisions("slo-aware", 4, warm=20, counted=200)
    assert 0 < measured.p50_us <= measured.p99_us
    assert (measured.rejected, measured.decided) == (0, 220)
    assert "| slo-aware |" in "\n".join(decisions_report([measured], 4))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="no policy is called"):
        decisions("best", 2)
