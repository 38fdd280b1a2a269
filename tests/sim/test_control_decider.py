"""The decider of a configuration: what it is told, and what it cannot do without."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.config.load import load_config
from core.control.actions import MeasuredCosts, PoolSizes
from core.control.decider import SizingDecider
from core.control.measured import MeasuredDecider
from core.errors import ConfigError
from sim.control_decider import decider_of
from sim.live_decider import live_decider
from tests.support.control import Watched, service

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
model: {{path: {model}, max_model_len: 4096}}
slo:
  classes:
    chat: {{ttft_ms: 1000, tpot_ms: 30, attainment: 0.9}}
pools:
  prefill: {{replicas: {prefill}, max_num_seqs: 256, max_num_batched_tokens: 8192}}
  decode: {{replicas: 2, max_num_seqs: 256, max_num_batched_tokens: 8192}}
plan: {{{plan}}}
"""


def configured(folder: Path, *, prefill: int = 2, plan: str = "") -> Path:
    file = folder / "slo.yaml"
    profile = ROOT / "deploy/profiles/llama-3.1-8b-rtxpro6000.json"
    model = ROOT / "deploy/models/baton-demo"
    file.write_text(TEXT.format(model=model, prefill=prefill, plan=plan or f"profile: {profile}"), encoding="utf-8")
    return file


def test_a_configuration_gives_a_decider_that_grows_pools_which_are_too_small(tmp_path: Path) -> None:
    made = decider_of(load_config(configured(tmp_path), environ={}))
    assert isinstance(made, SizingDecider)
    watched = Watched(PoolSizes(1, 1), 10)
    for _ in range(4):
        watched.apply(made.decide(watched.seen(300, (1000, 200))))
    assert watched.sizes.prefill > 1
    assert watched.sizes.decode > 1


def test_the_check_runs_beside_the_decisions_and_says_its_part_in_a_later_one(tmp_path: Path) -> None:
    made = decider_of(load_config(configured(tmp_path), environ={}))
    watched = Watched(PoolSizes(1, 1), 4)
    deadline_s = time.monotonic() + 60.0
    simulated = 0.0
    while not simulated and time.monotonic() < deadline_s:
        decision = made.decide(watched.seen(300, (1000, 200)))
        simulated = 0.0 if decision is None else dict(decision.figures)["simulated"]
    assert simulated > 0


def test_without_a_profile_or_a_device_it_waits_for_costs_that_are_measured(tmp_path: Path) -> None:
    made = decider_of(load_config(configured(tmp_path, plan="cpus: 1"), environ={}))
    assert isinstance(made, MeasuredDecider)
    assert "no plan.profile" in made.waits_for
    cost = service().prefill.cost
    watched = Watched(PoolSizes(1, 1), 10)
    for _ in range(4):
        seen = watched.seen(300, (1000, 200))
        workers = tuple(replace(worker, kv_blocks_total=4096, block_size=16) for worker in seen.workers)
        watched.apply(made.decide(replace(seen, workers=workers, costs=MeasuredCosts(cost, cost, 0.01))))
    assert made.waits_for == ""
    assert watched.sizes.prefill > 1
    assert watched.sizes.decode > 1


def test_without_a_prefill_pool_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pools\.prefill\.replicas"):
        decider_of(load_config(configured(tmp_path, prefill=0), environ={}))
    with pytest.raises(ConfigError, match="nowhere"):
        decider_of(load_config(configured(tmp_path, plan="profile: nowhere.json"), environ={}))


def test_by_name_it_is_made_where_it_is_asked_for(tmp_path: Path) -> None:
    config = load_config(configured(tmp_path), environ={})
    travelled = pickle.loads(pickle.dumps(live_decider))
    assert travelled is live_decider
    assert isinstance(travelled(config), SizingDecider)
