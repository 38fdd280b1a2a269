"""Pairs of engines whose KV cache is not the plain one: a sliding window in all layers, or in every other.

Output is that of the decode engine alone, whether the hand-over lands or fails; and a window is not sent from before.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.launch import WorkerProcess
from cluster.session_client import WorkerSession
from core.engine import HttpCall
from core.types import Handover, Leg, Role
from core.worker_spec import EngineSpec, KVSpec, WorkerSpec
from engine.demo_model.random_model import make_random_llama
from kv_transfer.control import KVControlClient

pytestmark = pytest.mark.engine

TOKEN, LEASE_S, START_S = "secret", 20.0, 180.0
WINDOW, BLOCK, CHUNK, LENGTHS = 64, 32, 256, (33, 64, 65, 400, 1000)
LAYERS, KV_HEADS, HEAD_SIZE = 4, 4, 64
BLOCK_BYTES = LAYERS * KV_HEADS * HEAD_SIZE * 2 * 4 * BLOCK  # keys and values in float32
NO_BINDING = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # else two ranks want a NUMA node each
EVERY = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": WINDOW}
OTHER = {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2), "sliding_window": WINDOW}


@dataclass
class Pair:
    """A prefill and a decode worker without a router."""

    workers: dict[Role, WorkerProcess]
    sessions: dict[Role, WorkerSession]

    async def whole(self, body: bytes) -> str:
        """Have decode do all of it."""
        return await _text(self.sessions[Role.DECODE], Leg.WHOLE, body, None)

    async def handed_over(self, body: bytes, transfer_id: str) -> str:
        """Run both legs; return what decode says."""
        handover = Handover(transfer_id, self._address(Role.DECODE), LEASE_S)
        text, _ = await asyncio.gather(
            _text(self.sessions[Role.DECODE], Leg.DECODE, body, handover),
            _text(self.sessions[Role.PREFILL], Leg.PREFILL, body, handover),
        )
        return text

    async def stats(self, role: Role) -> list[dict[str, object]]:
        """Ask every rank for its ledger and counters."""
        found = []
        for address in self._address(role).split(","):
            client = KVControlClient(address, TOKEN)
            found.append(await client.stats())
            await client.close()
        return found

    async def drop_a_layer(self) -> None:
        """Have prefill send one layer never again."""
        client = KVControlClient(self._address(Role.PREFILL), TOKEN)
        await client.inject({"drop_layer": 2})
        await client.close()

    def _address(self, role: Role) -> str:
        hello = self.workers[role].hello
        assert hello is not None
        return hello.kv_address


@asynccontextmanager
async def pair(tmp_path: Path, changes: dict[str, object], ranks: int) -> AsyncIterator[Pair]:
    model = make_random_llama(
        tmp_path / "model",
        hidden=256,
        layers=LAYERS,
        heads=4,
        kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        seed=5,
        dtype="float32",
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    workers: dict[Role, WorkerProcess] = {}
    sessions: dict[Role, WorkerSession] = {}
    try:
        for role in (Role.PREFILL, Role.DECODE):
            spec = worker_spec(tmp_path, model, role, ranks)
            workers[role] = await WorkerProcess.start(spec, log_path=tmp_path / f"{role.value}.log", env=NO_BINDING)
        for role, worker in workers.items():
            sessions[role] = WorkerSession(await worker.ready(START_S), token=TOKEN, on_change=lambda: None)
            await sessions[role].connect(10)
        yield Pair(workers, sessions)
    finally:
        for session in sessions.values():
            await session.close()
        for worker in workers.values():
            await worker.stop(20)


def worker_spec(run_dir: Path, model: Path, role: Role, ranks: int) -> WorkerSpec:
    engine = EngineSpec(
        kind="vllm",
        model_path=str(model),
        served_model_name="m",
        dtype="float32",
        max_model_len=2048,
        max_num_batched_tokens=CHUNK,
        kv_cache_bytes=64 << 20,
        tensor_parallel=ranks,
        enable_prefix_caching=False,  # decode computes all of it when asked to
    )
    kv = KVSpec(lease_s=LEASE_S, staging_bytes=64 << 20, faults=(("runtime", "1"),))
    return WorkerSpec(role.value, role, 1, "127.0.0.1", str(run_dir), engine, kv=kv, token=TOKEN)


async def _text(session: WorkerSession, leg: Leg, body: bytes, handover: Handover | None) -> str:
    headers = (("content-type", "application/json"),)
    reply = session.submit(leg, HttpCall("r", "POST", "/v1/completions", headers, body), handover)
    status, _ = await reply.head()
    data = b""
    while part := await reply.read():
        data += part
    assert status == 200, data
    return str(json.loads(data)["choices"][0]["text"]) if leg is not Leg.PREFILL else ""


def body_of(tokens: int) -> bytes:
    prompt = [random.Random(tokens * 1000 + i).randrange(300, 2000) for i in range(tokens)]
    body = {"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("changes", "ranks"), [(EVERY, 1), (OTHER, 1)], ids=["window in every layer", "in every other"]
)
async def test_output_is_that_of_one_engine(tmp_path: Path, changes: dict[str, object], ranks: int) -> None:
    async with asyncio.timeout(START_S + 60), pair(tmp_path, changes, ranks) as both:
        expected = [await both.whole(body_of(tokens)) for tokens in LENGTHS]
        for index, tokens in enumerate(LENGTHS):
            assert await both.handed_over(body_of(tokens), f"landed-{index}") == expected[index]
        landed = await both.stats(Role.DECODE)
        assert [stats["receives"]["landed"] for stats in landed] == [len(LENGTHS)] * ranks  # type: ignore[index]
        window_blocks = -(-WINDOW // BLOCK) + 1 if changes is EVERY else max(LENGTHS)
        blocks = sum(min(-(-tokens // BLOCK), window_blocks) for tokens in LENGTHS)
        assert sum(int(str(stats["bytes_landed"])) for stats in landed) <= blocks * BLOCK_BYTES
        await both.drop_a_layer()
        for index, tokens in enumerate(LENGTHS):
            assert await both.handed_over(body_of(tokens), f"failed-{index}") == expected[index]
        for stats in (await both.stats(Role.DECODE)) + (await both.stats(Role.PREFILL)):
            assert (stats["imbalance_blocks"], stats["leases"], stats["staged_bytes"]) == (0, [], 0)
        assert {stats["receives"]["failed"] for stats in await both.stats(Role.DECODE)} == {len(LENGTHS)}  # type: ignore[index]
