"""A promise is shown to be kept by a cluster that keeps it, and not kept under overload, and with a fault injected.

The clusters are simulated engines behind the real router; engines are slow enough for the client's own noise not to
matter, so that the verdicts hold on a machine that is several times slower.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from bench.serving.datasets import DatasetSpec
from bench.serving.endpoint import endpoint
from bench.serving.load_run import LoadRun
from bench.serving.load_shape import LoadShape
from bench.serving.metrics import Targets
from bench.serving.proof import Proof, Verdict
from bench.serving.proving import ProofPlan, prove
from bench.serving.session import BenchSpec, opened
from core.engine import HttpCall, ReplySink
from core.errors import EngineFailed
from core.router_spec import SLOTarget
from tests.support.router_site import Site

TTFT_MS, TPOT_MS = 3000.0, 500.0
SPEC = BenchSpec(
    dataset=DatasetSpec(input_tokens=64, output_tokens=6, class_shares=(("interactive", 1.0),)),
    shape=LoadShape(),
    targets={"interactive": Targets(TTFT_MS, TPOT_MS)},
    num_warmups=2,
    explains=True,
)


async def balanced() -> tuple[str, ...] | None:
    return ()


async def started(*flags: str) -> Site:
    site = Site()
    targets = (SLOTarget("interactive", TTFT_MS / 1e3, TPOT_MS / 1e3),)
    await site.start_router(slo_classes=targets, admission=False)
    await site.add_worker("prefill-0", *flags)
    await site.add_worker("decode-0", *flags)
    return site


async def proven(site: Site, rate: float, seconds: float, curve: tuple[float, ...] = ()) -> Proof:
    wanted = ProofPlan("x.yaml", SPEC, rate, seconds, curve, devices=2)
    async with asyncio.timeout(120), opened(endpoint(site.url)) as session:
        return await prove(session, wanted, balanced)


async def test_a_promise_that_is_kept() -> None:
    site = await started()
    try:
        found = await proven(site, rate=20, seconds=3, curve=(0.5,))
    finally:
        await site.stop()
    assert found.verdict is Verdict.KEPT, found.classes
    assert (found.parity.paired, found.parity.differing) == (4, ())
    assert [point.rate for point in found.curve] == [10, 20]
    assert found.slowest is not None
    slowest = max(found.run.timings, key=lambda timing: timing.ttft_ms)
    assert found.slowest.request_id == slowest.request_id
    assert 0 < sum(ms for _, ms in found.slowest.stages) <= slowest.ttft_ms + 1.0  # the router's part of it
    assert found.stages is not None
    assert found.stages.requests == 60
    assert all(timing.told["verdict"] in ("kept", "missed") for timing in found.run.timings)
    assert set(found.stages.mean_ms) >= {"queue", "prefill", "transfer_exposed", "first_step"}


async def test_without_a_rate_about_one_request_at_a_time_is_shown() -> None:
    site = await started("--step-ms", "20")
    try:
        wanted = ProofPlan("x.yaml", SPEC, None, 0.5)
        async with asyncio.timeout(120), opened(endpoint(site.url)) as session:
            found = await prove(session, wanted, balanced)
    finally:
        await site.stop()
    assert 0 < found.rate < 10  # a request takes six steps of 20 ms or more
    assert "no rate is promised" in found.notes[0]


async def test_overload_is_not_kept() -> None:
    # 6 tokens of 40 ms for each sequence: 4 requests a second can be served, each token of 20 at once takes 0.8 s.
    site = await started("--step-ms-per-seq", "40")
    try:
        found = await proven(site, rate=15, seconds=2)  # few: a client that is late on a busy machine proves nothing
    finally:
        await site.stop()
    assert found.verdict is Verdict.NOT_KEPT, found.classes
    assert "met both targets" in found.classes[0].why


async def test_workers_that_fail_are_not_kept() -> None:
    site = await started()

    async def fails(call: HttpCall, sink: ReplySink) -> None:
        raise EngineFailed("injected")

    def break_down(load: LoadRun) -> None:
        for worker in site.workers.values():
            worker.engine.script = fails

    wanted = ProofPlan("x.yaml", SPEC, 20.0, 3.0)
    try:
        async with asyncio.timeout(120), opened(endpoint(site.url)) as session:
            found = await prove(session, wanted, balanced, watch=break_down)
    finally:
        await site.stop()
    assert found.verdict is Verdict.NOT_KEPT, found.classes
    assert found.metrics.failed == 60
    assert not found.parity.is_broken


async def test_blocks_that_are_lost_are_not_kept() -> None:
    async def lost() -> tuple[str, ...]:
        return ("decode-0: granted 5, held 0 + released 3 + expired 0; restart it",)

    site = await started()
    try:
        wanted = ProofPlan("x.yaml", SPEC, 20.0, 3.0)
        async with asyncio.timeout(120), opened(endpoint(site.url)) as session:
            found = await prove(session, wanted, lost)
    finally:
        await site.stop()
    assert {verdict.verdict for verdict in found.classes} == {Verdict.KEPT}
    assert found.verdict is Verdict.NOT_KEPT


async def test_a_pair_that_answers_otherwise_is_not_kept() -> None:
    site = await started()
    engine = site.workers["decode-0"].engine
    plain = super(type(engine), engine).serve

    async def corrupted(call: HttpCall, sink: ReplySink) -> None:
        """Answer as if the KV that was handed over were of another prompt."""
        if b"do_remote_prefill" in call.body:
            call = replace(call, body=call.body.replace(b'"prompt": "', b'"prompt": "wrong ', 1))
        await plain(call, sink)

    try:
        engine.script = corrupted
        found = await proven(site, rate=20, seconds=3)
    finally:
        await site.stop()
    assert found.parity.is_broken
    assert found.verdict is Verdict.NOT_KEPT
