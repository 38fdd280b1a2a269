"""What is kept of a scene comes back as it was, and runs of unlike settings do not mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.fleet.goodput import Measured
from bench.fleet.record import Run, SceneFound, SystemFound, file_of, read, write

RUN = Run("DIR", 4_000, 5, 400.0, 1_500)
FOUND = SceneFound(
    "8 x H100, m",
    8,
    "code",
    "500/15",
    "P/D pays",
    "P/D, Baton",
    (
        SystemFound("one pool", "8 x tp1", Measured((8.0, 7.5), ((4.0, 1.0), (9.0, 0.5)))),
        SystemFound("P/D, Baton", "", Measured((0.0, 0.0), ())),
    ),
    1.5,
    (8.0, 6.0),
)


def test_a_scene_comes_back_as_it_was(tmp_path: Path) -> None:
    file = file_of(tmp_path / "new", FOUND.name, RUN)
    assert read(file) is None
    write(file, FOUND)
    assert read(file) == FOUND
    assert [path.suffix for path in file.parent.iterdir()] == [".json"]


def test_goodput_is_told_for_each_gpu() -> None:
    assert FOUND.goodput("one pool") == (1.0, 7.5 / 8)
    assert FOUND.goodput("not there") == ()


def test_runs_of_unlike_settings_have_files_of_their_own(tmp_path: Path) -> None:
    runs = [RUN, replace(RUN, requests=2), replace(RUN, draws=2), replace(RUN, kv_gbit_s=16.0), replace(RUN, data="")]
    files = {file_of(tmp_path, scene, run) for run in runs for scene in ("8 x A, b", "8 x A, c")}
    assert len(files) == 2 * len(runs)
