"""The guard and the flags of `baton chaos`."""

from __future__ import annotations

import json

import pytest

import baton


def test_a_cluster_in_use_is_not_broken_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton.main(["chaos", "run", "--running"]) == baton.USAGE
    assert "--yes" in capsys.readouterr().err


def test_the_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton.main(["chaos", "list"]) == baton.OK
    assert "kill-decode" in capsys.readouterr().out


def test_an_unknown_fault_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton.main(["chaos", "run", "--fault", "kill-everything"]) == baton.USAGE
    error = capsys.readouterr().err
    assert "kill-everything" in error
    assert "kill-decode" in error


def test_nothing_that_runs_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("BATON_STATE_DIR", str(tmp_path))
    assert baton.main(["chaos", "run", "--running", "--yes"]) == baton.FAILED
    assert "nothing runs" in capsys.readouterr().err


def test_the_list_is_json_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton.main(["chaos", "list", "--json"]) == baton.OK
    assert "kill-decode" in {fault["name"] for fault in json.loads(capsys.readouterr().out)}
