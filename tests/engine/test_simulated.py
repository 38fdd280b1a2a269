"""The simulated engine answers in OpenAI shapes, keeps the model's time, and gives every block back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from core.engine import HttpCall, Resume
from core.errors import ConfigError, EngineFailed
from core.types import LegFacts, Role, WorkerState
from core.worker_spec import EngineSpec, WorkerSpec
from engine.simulated import Deliveries, SimulatedEngine
from engine.simulated_timing import SimulatedTiming

WAIT_S = 20.0


class Sink:
    """Keeps a reply."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.data = b""
        self.token_ids: list[tuple[int, ...]] = []
        self.first = asyncio.Event()

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        assert not self.status
        self.status = status
        self.headers = dict(headers)

    def body(self, data: bytes) -> None:
        assert self.status
        assert data
        self.data += data
        self.first.set()

    def facts(self, facts: LegFacts) -> None:
        self.measured = facts

    def tokens(self, token_ids: Sequence[int]) -> None:
        self.token_ids.append(tuple(token_ids))

    @property
    def events(self) -> list[dict[str, object]]:
        *events, done, end = self.data.decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


def spec(*flags: str, **fields: object) -> WorkerSpec:
    engine = EngineSpec("simulated", "", "sim", extra_args=("--step-ms", "1", *flags), **fields)  # type: ignore[arg-type]
    return WorkerSpec("decode-0", Role.DECODE, 1, "127.0.0.1", "", engine)


@asynccontextmanager
async def running(
    *flags: str, deliveries: Deliveries | None = None, **fields: object
) -> AsyncIterator[SimulatedEngine]:
    engine = await SimulatedEngine.start(spec(*flags, **fields), deliveries)
    try:
        yield engine
    finally:
        await engine.close()
        await engine.close()
    state = engine.state()
    assert (state.num_running, state.num_waiting, state.kv_blocks_used) == (0, 0, 0)


def post(path: str = "/v1/completions", **body: object) -> HttpCall:
    return HttpCall("r1", "POST", path, (), json.dumps(body).encode())


async def answer(engine: SimulatedEngine, call: HttpCall) -> Sink:
    sink = Sink()
    async with asyncio.timeout(WAIT_S):
        await engine.serve(call, sink)
    return sink


async def test_completion_document_has_text_and_usage() -> None:
    async with running() as engine:
        sink = await answer(engine, post(prompt="once upon a time", max_tokens=5))
        body = json.loads(sink.data)
        assert (sink.status, body["object"], body["model"]) == (200, "text_completion", "sim")
        assert len(body["choices"][0]["text"].split()) == 5
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


async def test_stream_has_the_words_of_the_document_then_usage_and_done() -> None:
    async with running() as engine:
        asked = {"messages": [{"role": "user", "content": "tell me a story"}], "max_tokens": 6}
        document = json.loads((await answer(engine, post("/v1/chat/completions", **asked))).data)
        sink = await answer(
            engine, post("/v1/chat/completions", **asked, stream=True, stream_options={"include_usage": True})
        )
        *tokens, usage = sink.events
        assert sink.headers["content-type"].startswith("text/event-stream")
        assert [t["object"] for t in tokens] == ["chat.completion.chunk"] * 6
        deltas = [t["choices"][0]["delta"] for t in tokens]  # type: ignore[index]
        assert deltas[0]["role"] == "assistant"
        assert "".join(d["content"] for d in deltas) == document["choices"][0]["message"]["content"]
        assert [t["choices"][0]["finish_reason"] for t in tokens] == [None] * 5 + ["length"]  # type: ignore[index]
        assert (usage["choices"], usage["usage"]) == ([], document["usage"])


async def test_prompt_extended_by_its_output_goes_on_where_it_stopped() -> None:
    async with running() as engine:
        whole = json.loads((await answer(engine, post(prompt="a b c", max_tokens=10))).data)["choices"][0]["text"]
        head = " ".join(whole.split()[:4])
        rest = json.loads((await answer(engine, post(prompt=f"a b c {head}", max_tokens=6))).data)["choices"][0]
        assert f" {head}{rest['text']}" == whole


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "BadRequestError"),
        (b"[1]", 400, "BadRequestError"),
        (b"{}", 400, "BadRequestError"),
        (b'{"prompt": {}}', 400, "BadRequestError"),
        (b'{"prompt": "a", "max_tokens": -1}', 400, "BadRequestError"),
        (b'{"prompt": "a", "max_tokens": "x"}', 400, "BadRequestError"),
        (b'{"prompt": "a", "max_tokens": 100}', 400, "BadRequestError"),
        (b'{"prompt": "a", "model": "other"}', 404, "NotFoundError"),
    ],
)
async def test_bad_call_gets_an_openai_error(body: bytes, status: int, kind: str) -> None:
    async with running(max_model_len=64) as engine:
        sink = await answer(engine, HttpCall("r", "POST", "/v1/completions", (), body))
        error = json.loads(sink.data)["error"]
        assert (sink.status, error["code"], error["type"]) == (status, status, kind)


async def test_models_are_listed_and_other_paths_are_not_found() -> None:
    async with running() as engine:
        models = await answer(engine, HttpCall("r", "GET", "/v1/models?x=1", (), b""))
        assert json.loads(models.data)["data"][0]["id"] == "sim"
        assert (await answer(engine, post("/v1/nothing"))).status == 404


async def test_requests_share_steps() -> None:
    async with running(max_num_seqs=64) as engine:
        steps: list[WorkerState] = []
        engine.on_step(lambda: steps.append(engine.state()))
        calls = [post(prompt="a b", max_tokens=20, stream=True) for _ in range(50)]
        async with asyncio.timeout(WAIT_S):
            sinks = await asyncio.gather(*(answer(engine, call) for call in calls))
        assert all(len(sink.events) == 20 for sink in sinks)
        assert len(steps) <= 25
        assert max(state.num_running for state in steps) == 50


async def test_blocks_bound_what_runs_together() -> None:
    async with running("--num-kv-blocks", "10", block_size=4) as engine:  # each request needs 3 blocks
        most = 0

        def look() -> None:
            nonlocal most
            most = max(most, engine.state().kv_blocks_used)

        engine.on_step(look)
        await asyncio.gather(*(answer(engine, post(prompt="a b c d", max_tokens=8)) for _ in range(20)))
        assert most == 9
        sink = await answer(engine, post(prompt="a " * 30, max_tokens=30))
        assert (sink.status, "15 KV blocks" in sink.data.decode()) == (400, True)


async def test_long_prompt_takes_several_steps_of_the_token_budget() -> None:
    async with running("--prefill-tokens-per-s", "1e6", max_num_batched_tokens=100) as engine:
        steps: list[float] = []
        engine.on_step(lambda: steps.append(engine.state().step_s))
        await answer(engine, post(prompt="w " * 350, max_tokens=1))
        assert steps == pytest.approx([0.0011, 0.0011, 0.0011, 0.00105])


async def test_steps_say_what_they_computed() -> None:
    async with running("--prefill-tokens-per-s", "1e6", max_num_batched_tokens=100) as engine:
        steps: list[tuple[int, int]] = []
        engine.on_step(lambda: steps.append((engine.state().step_prompt_tokens, engine.state().step_seqs)))
        await answer(engine, post(prompt="w " * 250, max_tokens=3))
        assert steps == [(100, 0), (100, 0), (50, 1), (0, 1), (0, 1)]


async def test_facts_are_those_of_the_clockwork() -> None:
    async with running("--prefill-tokens-per-s", "1e5", max_num_batched_tokens=100) as engine:
        calls = (post(prompt="w " * 300, max_tokens=4), post(prompt="w " * 100, max_tokens=1))
        long, short = await asyncio.gather(*(answer(engine, call) for call in calls))
        # Steps of 100 tokens, 1 ms each; the second prompt has its turn when the first is done, beside its decoding.
        assert (long.measured.prompt_tokens, short.measured.prompt_tokens) == (300, 100)
        assert long.measured.queued_s >= 0
        assert 3 * 0.002 <= long.measured.prefill_s + 1e-6 <= short.measured.queued_s + 2e-6
        for facts in (long.measured, short.measured):
            assert (facts.cached_tokens, facts.received_tokens) == (0, 0)


async def test_a_prompt_that_begins_like_an_earlier_one_is_computed_from_there_on() -> None:
    async with running("--cached-blocks", "100", block_size=32) as engine:
        steps: list[int] = []
        engine.on_step(lambda: steps.append(engine.state().step_prompt_tokens))
        first = await answer(engine, post(prompt="w " * 100, max_tokens=1))
        longer = await answer(engine, post(prompt="w " * 150, max_tokens=1))
        again = await answer(engine, post(prompt="w " * 100, max_tokens=1))
        assert [sink.measured.cached_tokens for sink in (first, longer, again)] == [0, 96, 96]
        assert steps == [100, 54, 4]


async def test_what_is_refused_has_no_facts() -> None:
    async with running() as engine:
        sink = await answer(engine, post(prompt="a", max_tokens=-1))
        assert (sink.status, hasattr(sink, "measured")) == (400, False)


def test_time_of_a_step_has_its_three_terms() -> None:
    timing = SimulatedTiming.parse(("--prefill-tokens-per-s", "1000", "--step-ms", "5", "--step-ms-per-seq", "0.5"))
    assert timing.step_s(num_decoding=4, prefill_tokens=100) == pytest.approx(0.005 + 0.002 + 0.1)
    assert timing.handover_s(100) == pytest.approx(0.1 + 0.005)


@pytest.mark.parametrize("flags", [("--speed", "9"), ("--step-ms", "fast")])
async def test_unknown_flag_is_a_config_error(flags: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="simulated engine"):
        await SimulatedEngine.start(spec(*flags))


async def test_cancelled_calls_free_their_blocks_wherever_they_are() -> None:
    async with running(max_num_seqs=4) as engine:
        sinks = [Sink() for _ in range(8)]
        ticket = {"do_remote_prefill": True, "transfer_id": "t", "lease_s": 60}
        tasks = [
            asyncio.create_task(
                engine.serve(
                    post(prompt="a", max_tokens=5000, stream=True, kv_transfer_params=ticket if i == 2 else None),
                    sinks[i],
                )
            )
            for i in range(8)
        ]
        async with asyncio.timeout(WAIT_S):
            await sinks[3].first.wait()
            state = engine.state()
            assert state.num_running + state.num_waiting == 8
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert engine.state().kv_blocks_used == 0
        assert (await answer(engine, post(prompt="a", max_tokens=2))).status == 200


def legs(transfer_id: str, lease_s: float = 60.0) -> tuple[HttpCall, HttpCall]:
    ticket = {"transfer_id": transfer_id, "lease_s": lease_s}
    prompt = "w " * 100
    return (
        post(prompt=prompt, max_tokens=1, kv_transfer_params={"do_remote_decode": True, **ticket}),
        post(prompt=prompt, max_tokens=5, kv_transfer_params={"do_remote_prefill": True, **ticket}),
    )


@pytest.mark.parametrize("decode_first", [True, False])
async def test_decode_leg_waits_for_the_prefill_leg_and_skips_its_prompt(decode_first: bool) -> None:
    deliveries = Deliveries()
    async with running(deliveries=deliveries) as prefill, running(deliveries=deliveries) as decode:
        prefill_call, decode_call = legs("t1")
        waiting = asyncio.create_task(answer(decode, decode_call)) if decode_first else None
        await asyncio.sleep(0)
        assert decode.state().num_waiting == (1 if decode_first else 0)
        await answer(prefill, prefill_call)
        step_s: list[float] = []
        decode.on_step(lambda: step_s.append(decode.state().step_s))
        sink = await (waiting or answer(decode, decode_call))
        assert json.loads(sink.data)["usage"]["completion_tokens"] == 5
        assert step_s[0] == pytest.approx(0.001 + 1 / 20_000)  # one prompt token, not a hundred
        assert (sink.measured.prompt_tokens, sink.measured.received_tokens) == (100, 100)
        assert decode.state().step_prompt_tokens == 0


@pytest.mark.parametrize("lease_s", [0.01, 60.0], ids=["lease runs out", "cancelled"])
async def test_decode_leg_recomputes_when_nothing_will_come(lease_s: float) -> None:
    async with running(deliveries=Deliveries()) as decode:
        step_s: list[float] = []
        decode.on_step(lambda: step_s.append(decode.state().step_s))
        waiting = asyncio.create_task(answer(decode, legs("t1", lease_s)[1]))
        await asyncio.sleep(0)
        if lease_s > 1:
            await decode.cancel_transfer("t1", "the prefill worker died")
        assert (await waiting).status == 200
        assert step_s[0] == pytest.approx(0.001 + 100 / 20_000)
        assert (await waiting).measured.received_tokens == 0


async def test_decode_leg_without_deliveries_waits_the_time_of_a_handover() -> None:
    async with running("--transfer-ms", "50") as decode:
        began_s = asyncio.get_running_loop().time()
        await answer(decode, legs("t1")[1])
        assert asyncio.get_running_loop().time() - began_s >= 0.055


async def test_failure_ends_every_call() -> None:
    async with running() as engine:
        sink = Sink()
        task = asyncio.create_task(engine.serve(post(prompt="a", max_tokens=5000, stream=True), sink))
        await sink.first.wait()
        engine.fail("out of memory")
        for outcome in (task, engine.serve(post(prompt="a"), Sink())):
            with pytest.raises(EngineFailed, match="out of memory"):
                await outcome
        assert await engine.failed() == "out of memory"


async def test_resumed_stream_is_that_of_the_beginning_and_tells_only_new_tokens() -> None:
    async with running() as engine:
        asked = post("/v1/completions", prompt="the sea", max_tokens=8, stream=True)
        whole = await answer(engine, asked)
        made = [token for group in whole.token_ids for token in group]
        assert len(made) == 7  # not the one that ends it
        resumed = await answer(engine, replace(asked, resume=Resume(made[:3], ())))
        assert resumed.data == whole.data
        assert [token for group in resumed.token_ids for token in group] == made[3:]
        grouped = await answer(engine, replace(asked, resume=Resume(made[:3], (1, 2))))
        assert len(grouped.events) == len(whole.events) - 1
