"""The comparison of policies: its setting over a small stand-in for the public data, and what its tables say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bench.policies import (
    BASELINES,
    FACTORS,
    OURS,
    TRAFFIC,
    Compared,
    Measured,
    Scene,
    cluster_of,
    compare,
    panel_of,
    report,
    scene_of,
    workloads_of,
)
from core.policy.registry import POLICIES


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write requests of made-up lengths in the form of the trace with prefixes."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "traces").mkdir()
    rng = np.random.default_rng(0)
    rows = [
        {
            "timestamp": int(100 * i),
            "input_length": int(rng.integers(600, 9000)),
            "output_length": int(rng.integers(1, 200)),
            "hash_ids": [0],
        }
        for i in range(200)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "traces" / TRAFFIC[2].file).write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture(scope="module")
def scene(data: Path) -> Scene:
    workloads = workloads_of(data, TRAFFIC[2], requests=150, seeds=2)
    return scene_of(TRAFFIC[2], cluster_of(1, 1), workloads)


def test_every_policy_but_ours_is_a_baseline() -> None:
    assert {OURS, *BASELINES} == set(POLICIES)


def test_all_meet_the_same_requests_which_seeds_draw(scene: Scene) -> None:
    assert [len(workload) for workload in scene.workloads] == [150, 150]
    assert (scene.workloads[0].prompt_tokens != scene.workloads[1].prompt_tokens).any()
    assert scene.name == "Mooncake conversations, 1P1D"


def test_the_capacity_is_what_prefill_computes(scene: Scene) -> None:
    # 8,192 tokens a step, and every prompt but the first has 512 tokens cached.
    cost, workload = scene.cluster.decode.cost, scene.workloads[0]
    tokens = float(workload.prompt_tokens.mean()) - 512
    assert scene.capacity == pytest.approx(1 / (tokens / 8192 * cost.prefill_s(8192)), rel=0.3)


def test_policies_keep_everything_at_half_the_capacity_and_less_beyond(scene: Scene) -> None:
    compared = compare(scene, (OURS, "least-loaded"))
    assert [m.factor for m in compared.of(OURS)] == list(FACTORS)
    for policy in (OURS, "least-loaded"):
        assert min(compared.of(policy)[0].attainment) > 0.9
    assert compared.best_baseline(3.0).policy == "least-loaded"
    assert compared.ratio(3.0)[1] > 1.0
    assert len(panel_of(compared).curves) == 2


def test_tables_give_ratios_of_the_same_draws(scene: Scene) -> None:
    def figures(factor: float, ours: tuple[float, float], other: tuple[float, float]) -> list[Measured]:
        shares = (0.5, 0.7), (0.25, 0.35)
        return [Measured(OURS, factor, ours, *shares), Measured("random", factor, other, (0.1, 0.1), (0.0, 0.0))]

    goodputs = dict.fromkeys(FACTORS, ((10.0, 12.0), (5.0, 8.0))) | {3.0: ((8.0, 8.0), (0.0, 0.0))}
    measured = [m for factor, pair in goodputs.items() for m in figures(factor, *pair)]
    compared = Compared(scene, tuple(measured))
    assert compared.ratio(1.0) == pytest.approx((1.5, 11.0 / 6.5, 2.0))
    assert compared.kept_of_peak(OURS, 3.0) == pytest.approx(8 / 11)
    lines = list(report(compared))
    row = "| 1x | 11.0 [10.0..12.0] | 5.50 | 60.0% | 30.0% | random | 6.5 [5.0..8.0] | 10.0% | 1.69 [1.50..2.00] |"
    assert row in lines
    assert any(line.startswith("| 3x |") and line.endswith("| >99 [>99..>99] |") for line in lines)
    assert "Of its own peak at 1.5x: slo-aware 100%, random 100%." in lines
