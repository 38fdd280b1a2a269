"""What vLLM's CPU build gets wrong when requests share a batch is right here."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.engine.conftest import RunningEngine

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
COMPLETIONS = "/v1/completions"


def prompt(tokens: int, start: int = 0) -> list[int]:
    return [100 + (start + 7 * i) % 150 for i in range(tokens)]


async def text(running: RunningEngine, **body: object) -> str:
    status, data = await running.ask(COMPLETIONS, {"model": "tiny", "max_tokens": 8, "temperature": 0} | body)
    assert status == 200, data
    return str(json.loads(data)["choices"][0]["text"])


async def test_seeded_prompts_in_chunks_do_not_kill_the_engine(running: RunningEngine) -> None:
    async def all_at_once() -> list[str]:
        seeded = ({"prompt": prompt(1500, i), "seed": i, "temperature": 1.0} for i in range(6))
        return await asyncio.gather(*(text(running, **body) for body in seeded))

    together = await all_at_once()
    alone = [await text(running, prompt=prompt(1500, i), seed=i, temperature=1.0) for i in range(6)]
    assert together == alone  # the tokens thrown away took nothing from the seed's sequence
    assert len(set(together)) > 1


async def test_adapter_does_not_reach_requests_for_the_base_model(running: RunningEngine) -> None:
    prompts = [prompt(20 + 30 * i, 3 * i) for i in range(6)]
    base = [await text(running, prompt=p) for p in prompts]
    poet = [await text(running, prompt=p, model="poet") for p in prompts]
    assert base != poet
    asked = [text(running, prompt=p, model=m) for p in prompts for m in ("tiny", "poet")]
    mixed = await asyncio.gather(*asked)
    assert (list(mixed[::2]), list(mixed[1::2])) == (base, poet)
