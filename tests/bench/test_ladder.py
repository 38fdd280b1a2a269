"""The ladder's setting, its rungs over a small stand-in for the public data, and how placements are described."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bench.ladder import COLUMNS, Column, described, profile_of, question_of, workloads_of
from sim.cluster import Admission, ClusterSpec, Mode, Order, PoolSpec, Routing
from sim.search.placements import fits_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write coefficients, capacities, lengths and a trace in the forms of the public files; the figures are made up."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "profiles").mkdir()
    (folder / "traces").mkdir()
    one = {
        "prefill": [10.0, 0.1, 1e-6],
        "decoding_smallbs": [15.0, 5e-4, 0.05],
        "decoding_largebs": [10.0, 5e-4, 0.1],
        "decoding_large_small_bs_threshold": 95,
    }
    fits = {engine: {"facebook/opt-13b": {"1": one, "2": one}} for engine in ("distserve", "vllm")}
    (folder / "profiles" / "distserve-a100-opt.json").write_text(json.dumps(fits))
    sizes = ("1,1,60000", "1,2,90000", "2,1,90000")
    rows = "model,tp,pp,max_num_tokens\n" + "".join(f"facebook/opt-13b,{size}\n" for size in sizes)
    (folder / "profiles" / "distserve-a100-max-num-tokens.csv").write_text(rows)
    rng = np.random.default_rng(0)
    write(
        folder / "traces" / "sharegpt-like-synth-lengths.csv.gz",
        ("prompt_tokens", "output_tokens"),
        rng.integers(1, 900, (400, 2)),
    )
    table = np.column_stack((np.arange(50.0), rng.integers(1, 900, (50, 2))))
    write(folder / "traces" / "azure-2023-conv.csv.gz", ("arrived_s", "prompt_tokens", "output_tokens"), table)
    return folder


def write(path: Path, heads: tuple[str, ...], rows: np.ndarray) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([heads, *rows.tolist()])


def test_sizes_with_pipeline_stages_are_left_out(data: Path) -> None:
    sizes = [(s.tensor_parallel, s.pipeline_parallel) for s in profile_of(data, "distserve").shapes]
    assert sizes == [(1, 1), (2, 1)]


def test_chat_is_drawn_for_three_seeds_at_one_request_per_second(data: Path) -> None:
    drawn = workloads_of(data, "chat", requests=300)
    assert [len(w) for w in drawn] == [300, 300, 300]
    assert all(w.rate == pytest.approx(1.0, rel=0.2) for w in drawn)
    assert not np.array_equal(drawn[0].prompt_tokens, drawn[1].prompt_tokens)
    again = workloads_of(data, "chat", requests=300)
    assert np.array_equal(drawn[2].arrived_s, again[2].arrived_s)


def test_a_trace_is_one_workload_in_its_own_order(data: Path) -> None:
    (trace,) = workloads_of(data, "conv")
    assert trace.arrived_s.tolist() == list(range(50))


def test_the_columns_are_seven_promises_each_with_its_reference() -> None:
    assert [c.name for c in COLUMNS] == [
        "chat 200/100",
        "chat 400/40",
        "chat 1000/30",
        "conv 1000/100",
        "conv 1000/40",
        "conv 2000/30",
        "code 1500/50",
    ]
    (target,) = Column("chat", 200, 100, 2.5).targets
    assert (target.ttft_s, target.tpot_s, target.attainment) == (0.2, 0.1, 0.9)


def test_the_planner_is_asked_about_every_mode_and_size(data: Path) -> None:
    asked = question_of(COLUMNS[0], workloads_of(data, "chat", requests=50)[0], profile_of(data, "distserve"), 8)
    assert set(asked.modes) == set(Mode)
    assert not asked.equal_parallelism
    assert [(fit.shape.tensor_parallel, fit.most) for fit in fits_of(asked)] == [(1, 8), (2, 4)]


def test_a_placement_is_described_in_a_line(data: Path) -> None:
    one, two = profile_of(data, "distserve").shapes
    pools = PoolSpec(3, one.cost, 60_000, max_num_batched_tokens=512), PoolSpec(2, two.cost, 90_000, 2)
    routing = Routing(order=Order.SLACK, admission=Admission.TTFT, whole_below_tokens=64)
    assert described(ClusterSpec(Mode.HYBRID, *pools, routing=routing)) == (
        "hybrid: P 2 x tp2, D 3 x tp1; refusal ttft, order slack, whole below 64, overflow False, chunk 512"
    )
    assert described(ClusterSpec(Mode.ONE_POOL, pools[0])) == "one-pool: 3 x tp1; refusal off, order arrival"
