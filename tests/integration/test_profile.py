"""`baton profile` of real engines: its file reads back and tells how long steps take that were not measured."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from bench.engine_process import EngineProcess, running
from bench.profile_command import run
from bench.profile_engine import Driver
from bench.profile_specs import engines_to_measure, this_machine
from core.config.load import load_config
from core.errors import StartFailed
from core.latency.profile import read_profile
from core.types import Role
from engine.step_clock import TracedStep
from tests.support.processes import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CONFIG = ROOT / "deploy" / "slo.yaml"
FACTOR = 3.0  # the machine that runs tests does other things too, and never the same


def steps_of(engine: EngineProcess, driver: Driver, prompts: list[int], outputs: int) -> list[TracedStep]:
    before = len(engine.steps())
    engine.run([driver.call(driver.prompt(tokens), outputs) for tokens in prompts])
    return engine.steps()[before:]


@pytest.mark.timeout(600)
def test_a_quick_profile_predicts_steps_it_has_not_seen(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    options = argparse.Namespace(config=CONFIG, overrides=[], out=out, pool=None, quick=True, as_json=True)
    assert run(options) == 0
    profile = read_profile(out)
    assert profile.model == "baton-demo"
    assert profile.kv_bytes_per_token > 0
    assert 0 < profile.request_overhead_s < 1
    cost = profile.shape(1).cost
    config = load_config(CONFIG, environ={})
    ((decode,),) = engines_to_measure(config, [Role.DECODE], this_machine(cpu_build=True), tmp_path, ROOT)
    with running([decode.spec]) as (engine,):
        driver = Driver(engine, seed=99)
        assert profile.shape(1).kv_capacity_tokens == engine.facts.kv_capacity_tokens
        steps_of(engine, driver, [200], 4)
        prompts = [each for tokens in (90, 300, 700) * 3 for each in steps_of(engine, driver, [tokens], 1)]
        batch = [each for each in steps_of(engine, driver, [150] * 5, 40) if each.step.decode_seqs == 5]
    assert {each.step.prefill_tokens for each in prompts} == {90, 300, 700}
    assert len(batch) > 20
    for seen in (prompts, [each for each in batch if not each.step.prefill_tokens]):
        ratio = statistics.median(cost.seconds(each.step) / each.seconds for each in seen)
        assert 1 / FACTOR < ratio < FACTOR


def test_an_engine_that_does_not_start_says_why(tmp_path: Path) -> None:
    config = load_config(CONFIG, environ={})
    ((engine,),) = engines_to_measure(config, [Role.DECODE], this_machine(cpu_build=True), tmp_path, ROOT)
    arguments = (*engine.spec.engine.extra_args, "--no-such-flag")
    spec = replace(engine.spec, engine=replace(engine.spec.engine, extra_args=arguments))
    with pytest.raises(StartFailed, match="no-such-flag"), running([spec]):
        pass
