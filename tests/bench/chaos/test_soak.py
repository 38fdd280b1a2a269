"""What of a long run is growth, and what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.chaos.processes import Usage
from bench.chaos.soak import MIN_SAMPLES, WARM_UP_SAMPLES, Series, SoakResult, soak_report
from bench.chaos.traffic import Verdict

LONG = WARM_UP_SAMPLES + MIN_SAMPLES


def series(rss_mb: Sequence[float], descriptors: Sequence[int] | None = None) -> Series:
    counts = descriptors or [40] * len(rss_mb)
    return Series("router", 7, tuple(Usage(mb, n) for mb, n in zip(rss_mb, counts, strict=True)), 110.0)


def result(*found: Series, ledger: tuple[str, ...] = (), cut_clients: int = 0, **answers: int) -> SoakResult:
    counted = Counter({Verdict(name): count for name, count in answers.items()})
    return SoakResult(600.0, counted, Counter({"kill-decode": 3}), found, ledger, cut_clients)


def test_a_process_that_stays_as_it_is_has_not_grown() -> None:
    assert series([200.0] * LONG).failures() == []


def test_what_it_allocates_when_it_warms_up_is_no_growth() -> None:
    assert series([10.0] * WARM_UP_SAMPLES + [300.0] * MIN_SAMPLES).failures() == []


def test_memory_and_descriptors_that_rise_are_told() -> None:
    rising = [100.0 + 10 * number for number in range(LONG)]
    assert "memory grew from 135 to 195 MiB" in series(rising).failures()[0]
    counts = [40 + 5 * number for number in range(LONG)]
    assert "descriptors became" in series([100.0] * LONG, counts).failures()[0]


def test_a_short_life_is_not_judged() -> None:
    assert series([100.0 * number for number in range(LONG - 1)]).failures() == []


@pytest.mark.parametrize("verdict", ["wrong", "hung"])
def test_one_wrong_or_hung_answer_fails(verdict: str) -> None:
    assert result(right=1000).failures() == []
    assert result(right=1000, **{verdict: 1}).failures() == [f"1 {verdict}"]


def test_connections_are_cut_by_faults_that_cut_only() -> None:
    assert result(right=1000, cut=4, cut_clients=4).failures() == []
    assert result(right=1000, cut=5, cut_clients=4).failures() == ["5 cut, 4 by faults that cut"]


def test_too_many_errors_and_what_is_held_fail() -> None:
    assert result(right=97, error=3).failures() == ["97.0% right, 99% wanted"]
    assert result(right=1, ledger=("decode-0: 4 blocks held",)).failures() == ["ledger: decode-0: 4 blocks held"]


def test_the_report_names_what_was_done_and_what_grew() -> None:
    rising = [100.0 + 10 * number for number in range(LONG)]
    text = soak_report(result(series(rising), right=10))
    assert "10.0 minutes, 3 faults (kill-decode 3); answers: 10 right." in text
    assert "| router | 110 s | 135, 195 MiB | 40, 40 |" in text
    assert "- router (7): memory grew" in text


def test_the_report_says_why_answers_were_not_right() -> None:
    found = replace(result(right=8, error=3), reasons={"error: it broke": 1, "error: it is full": 2})
    lines = soak_report(found).splitlines()
    assert lines[-2:] == ["- 2 times: error: it is full", "- 1 times: error: it broke"]
