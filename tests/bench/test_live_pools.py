"""What is simulated of live pools is what is started."""

from __future__ import annotations

from bench.live_pools import apart, one_pool
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table
from sim.cluster import Mode

ONE, TWO = (
    StepCost(Table.line(1e-3, 1e-3), Table.constant(0.0), Table.constant(step_s), Table.constant(0.0))
    for step_s in (0.01, 0.006)
)
SHAPES = (ShapeProfile(1, 1, ONE, 9_000, 0.1, 0.1), ShapeProfile(2, 1, TWO, 18_000, 0.1, 0.1))
PROFILE = EngineProfile("m", "d", "e", "s", SHAPES, 100, 32, request_overhead_s=0.1, handover_overhead_s=0.2)


def test_both_have_both_cores() -> None:
    pair, pool = apart(PROFILE), one_pool(PROFILE, 2)
    assert (pair.mode, pair.gpus, pool.mode, pool.gpus) == (Mode.DISAGGREGATED, 2, Mode.ONE_POOL_CHUNKED, 2)
    assert (pair.decode.cost, pool.decode.cost) == (ONE, TWO)


def test_each_has_its_chunks_and_what_a_request_costs_beside_steps() -> None:
    pair, pool = apart(PROFILE), one_pool(PROFILE, 1)
    assert pair.prefill is not None
    assert pool.prefill is None
    assert (pair.prefill.max_num_batched_tokens, pool.decode.max_num_batched_tokens) == (512, 256)
    assert (pair.handover_overhead_s, pool.handover_overhead_s) == (0.2, 0.0)
    assert pair.link.kv_bytes_per_token == 100
