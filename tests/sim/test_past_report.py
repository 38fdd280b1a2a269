"""What happened beside what is simulated: shares of the judged only, and an error that is 0 where they agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.past import case_of
from sim.past_report import error_line, happened, lines_of, replay_error, simulated
from sim.recording import read_recording
from tests.support.recordings import as_simulated, requests, written


def test_a_past_that_went_as_simulated_has_no_error(tmp_path: Path) -> None:
    recording = read_recording(as_simulated(tmp_path / "t.jsonl", requests(rate=16.0)))
    case = case_of(recording)
    outcome = case.run()
    error = replay_error(recording, case, outcome)
    assert error is not None
    assert (error.windows, error.mean, error.largest, error.bias) == (8, 0.0, 0.0, 0.0)
    real, again = happened(recording, case), simulated(recording, case, outcome)
    assert real.attainment == again.attainment
    assert real.attainment is not None
    assert 0.3 < real.attainment < 1.0
    for one, other in zip(real.classes, again.classes, strict=True):
        assert one.ttft_p50_s == pytest.approx(other.ttft_p50_s, abs=1e-5)
        assert (one.requests, one.refused) == (other.requests, other.refused)


def test_the_error_is_what_differs_window_by_window(tmp_path: Path) -> None:
    found = [r._replace(kept=i >= 30) for i, r in enumerate(requests(120, rate=1.0))]
    recording = read_recording(written(tmp_path / "t.jsonl", found))
    case = case_of(recording)
    error = replay_error(recording, case, case.run())
    assert error is not None
    assert (error.windows, error.requests) == (4, 30)
    assert error.largest == 1.0  # nothing of the first window was kept, and one request a second is no load
    assert error.mean == error.bias == 0.25
    assert "25.0 points too good over all" in error_line(error)


def test_who_left_counts_nowhere(tmp_path: Path) -> None:
    found = [
        r._replace(kept=None, outcome="client_gone") if i % 2 else r for i, r in enumerate(requests(120, rate=1.0))
    ]
    recording = read_recording(written(tmp_path / "t.jsonl", found))
    case = case_of(recording)
    for telling in (happened(recording, case), simulated(recording, case, case.run())):
        assert sum(result.requests for result in telling.classes) == 60
        assert telling.goodput == pytest.approx(60 / case.span_s)
        assert telling.device_hours == pytest.approx(2 * case.span_s / 3600)


def test_few_requests_have_no_error_and_say_so(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path / "t.jsonl", requests(40)))
    case = case_of(recording)
    outcome = case.run()
    assert replay_error(recording, case, outcome) is None
    lines = "\n".join(lines_of([("happened", happened(recording, case))], None, price_per_hour=2.0))
    assert "replay error: not known" in lines
    assert "price/1M kept" in lines
