"""The steps and their order, and what is said before there is anything to judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.pd_or_pool.__main__ import Bench
from core.config.load import load_config


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "m", tmp_path / "out", seconds=1.0, turns=2)


def test_profiles_come_first_and_each_system_goes_first_in_every_other_turn(bench: Bench) -> None:
    names = [file.name for file, _ in bench.steps()]
    assert names == ["two-cores.json", "profile.json", "apart-0.json", "pool-0.json", "pool-1.json", "apart-1.json"]


def test_the_configuration_is_one_that_up_takes_and_refuses_nothing(bench: Bench) -> None:
    config = load_config(bench.config(), environ={})
    assert config.pools != "auto"
    assert (config.pools.prefill.replicas, config.pools.decode.replicas) == (1, 1)
    assert config.pools.prefill.cpus == config.pools.decode.cpus == 1
    assert not config.router.admission
    assert config.plan.profile is None
    bench.profile_file.write_text("{}")
    assert load_config(bench.config(), environ={}).plan.profile == str(bench.profile_file.resolve())


def test_without_a_whole_turn_there_is_no_verdict(bench: Bench) -> None:
    assert list(bench.lines(None)) == ["m: no whole turn of both systems yet"]
