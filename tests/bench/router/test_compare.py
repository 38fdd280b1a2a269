"""The whole comparison, of Baton's router alone: real processes, every test once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.router.__main__ import main
from bench.router.compare import Plan, compare
from bench.router.figures import TESTS, Results
from bench.router.site import BATON, DIRECT, Cores


@pytest.mark.slow
def test_every_test_of_the_router_and_of_none_is_answered_without_error() -> None:
    taken, notes = compare(Plan(Cores(None, None), rounds=1, seconds=0.3, warm_s=0.2, peers=()))
    assert notes == []
    assert {(t.target, t.test) for t in taken} == {(name, test.name) for name in (BATON, DIRECT) for test in TESTS}
    assert all(t.window.errors == 0 for t in taken)
    assert all(t.window.requests > 0 for t in taken if t.test != "s32-10ms")  # a stream of it takes 0.64 s
    routed = [t for t in taken if t.target == BATON]
    assert all(t.window.cores("router") > 0 and t.rss_mb > 10 for t in routed)
    assert Results(taken).num_requests(BATON) > 10


@pytest.mark.slow
def test_what_cannot_start_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policy", "best", "--no-peers", "--unpinned", "--only", "u1", "--rounds", "1"]
    assert main(words) == 1
    assert "no policy is called 'best'" in capsys.readouterr().err


def test_a_core_that_is_not_there_is_named_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--no-peers", "--load-core", "4000"]) == 1
    assert "cannot start on core 4000 at priority 0: take --unpinned" in capsys.readouterr().err


def test_the_folder_of_peers_is_not_in_the_environment_of_the_checkout() -> None:
    assert Plan(Cores()).peers_folder == Path(".baton/bench-peers")
