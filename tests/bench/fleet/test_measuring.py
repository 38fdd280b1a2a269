"""Scenes are found in other processes, kept, and not found twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fleet.measuring import done, find_all
from bench.fleet.record import Run
from bench.fleet.scenes import CODE, SMALL, Promise, Scene
from bench.fleet.systems import BATON, ONE_POOL_BATON
from core.errors import ConfigError

RUN = Run("", requests=150, draws=2, kv_gbit_s=400.0, chosen_on=80)
SCENE = Scene(SMALL[0], CODE, Promise(1.0, 0.05))


def test_a_scene_is_found_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = find_all([SCENE], RUN, tmp_path, processes=1)
    assert found.traffic == "code (made up)"
    assert found.of("P/D, prefix affinity") is None  # nothing is shared
    assert found.of("P/D, power of two") is not None
    assert found.planned in (ONE_POOL_BATON, BATON)
    assert all(len(system.measured.goodput) == RUN.draws for system in found.systems)
    assert all(0 <= share <= 1 for system in found.systems for _, share in system.measured.curve)
    assert find_all([SCENE], RUN, tmp_path, processes=1) == [found] == done([SCENE], RUN, tmp_path)
    assert "1 scenes, 1 of them already in" in capsys.readouterr().err


def test_when_time_is_up_what_runs_is_kept_and_no_more_begins(tmp_path: Path) -> None:
    scenes = [Scene(SMALL[0], CODE, Promise(1.0, 0.05 + share / 100)) for share in range(5)]
    few = Run("", requests=60, draws=1, kv_gbit_s=400.0, chosen_on=30)
    found = find_all(scenes, few, tmp_path, processes=1, minutes=0.0)
    assert 1 <= len(found) < len(scenes)
    assert done(scenes, few, tmp_path) == found


def test_data_that_is_not_there_ends_it_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data"):
        find_all([SCENE], Run(str(tmp_path), 10, 2, 400.0, 10), tmp_path, processes=1)
