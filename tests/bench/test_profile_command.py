"""`baton profile` finds what is wrong before it starts anything, and says what it found."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.profile_command import DEFAULT_FOLDER, run, summary
from core.errors import ConfigError
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table


def options(config: Path, **values: object) -> argparse.Namespace:
    given = {"overrides": [], "out": None, "pool": None, "quick": True, "as_json": False}
    return argparse.Namespace(config=config, **{**given, **values})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "slo.yaml"
    file.write_text("model: {path: ./absent}\nslo: {classes: {chat: {ttft_ms: 400, tpot_ms: 40}}}\n")
    return file


def test_a_missing_model_folder_is_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path: there is no folder \./absent"):
        run(options(config, out=tmp_path / "profile.json"))
    assert not (tmp_path / "profile.json").exists()


def test_a_file_that_cannot_be_written_is_refused_at_once(config: Path) -> None:
    for out in (config / "below" / "profile.json", config.parent, Path("/proc/profile.json")):
        with pytest.raises(ConfigError, match=r"--out .*cannot be written"):
            run(options(config, out=out))


def test_an_error_in_the_configuration_is_that_of_every_verb(config: Path) -> None:
    with pytest.raises(ConfigError, match="prefil"):
        run(options(config, overrides=["pools.prefil.replicas=2"]))


def test_an_older_profile_stays_when_a_new_one_cannot_be_made(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    out.write_text("kept")
    with pytest.raises(ConfigError):
        run(options(config, out=out))
    assert out.read_text() == "kept"


def test_profiles_are_kept_beside_the_state() -> None:
    assert Path(".baton") / "profiles" == DEFAULT_FOLDER


def test_the_summary_says_times_errors_overheads_and_the_file() -> None:
    cost = StepCost(Table.line(0.0, 1e-4), Table.constant(0.0), Table.line(5e-3, 1e-4), Table.constant(0.0))
    shape = ShapeProfile(2, 1, cost, 1000, 0.05, 0.1)
    profile = EngineProfile("m", "d", "vllm 0", "s", (shape,), 10, request_overhead_s=0.002, handover_overhead_s=0.003)
    text = "\n".join(summary(profile, Path("p.json")))
    for words in (
        "m on d, vllm 0",
        "tensor parallel 2",
        "512 in 51 ms",
        "8 in 5.8 ms",
        "5%",
        "10%",
        "2.0 ms",
        "3.0 ms",
    ):
        assert words in text
    assert "p.json" in text
