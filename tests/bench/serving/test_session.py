"""Benchmarks over real sockets: what is sent, when, and that each request ends exactly once.

Invariant of every run here: as many timings as requests were sent, each of them complete, failed or left, never two.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.serving.datasets import DatasetSpec
from bench.serving.endpoint import endpoint
from bench.serving.goodput_search import OverSaturation
from bench.serving.load_run import Live, RunOptions
from bench.serving.load_shape import LoadShape
from bench.serving.metrics import Targets
from bench.serving.result import BenchResult, result_json
from bench.serving.session import BenchSpec, at_rate, opened
from core.errors import ConfigError
from tests.support.http_mocks import STREAM_HEAD, Heard, Mock, chunk, document, mock_server, stream_tokens, token_event

SPEC = BenchSpec(dataset=DatasetSpec(num_requests=40, input_tokens=20, output_tokens=5))


async def bench(mock: Mock, spec: BenchSpec, is_hopeless: Callable[[Live], bool] | None = None) -> BenchResult:
    async with asyncio.timeout(60), opened(endpoint(mock.url)) as session:
        result = await session.run(spec, is_hopeless=is_hopeless)
    found = result.metrics
    assert found.completed + found.failed + found.cancelled == len(result.run.timings)
    assert all(t.ended_s for t in result.run.timings)
    return result


async def test_prompts_have_their_tokens_by_the_servers_own_count() -> None:
    async with mock_server() as mock:
        result = await bench(mock, SPEC)
        assert result.metrics.completed == 40
        assert {t.prompt_tokens for t in result.run.timings} == {20}
        assert {t.output_tokens for t in result.run.timings} == {5}
        body = mock.generations()[-1].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("mock", 5, 0.0)
    assert (body["ignore_eos"], body["stream_options"]) == (True, {"include_usage": True})


async def test_chat_classes_and_headers() -> None:
    spec = replace(
        SPEC,
        is_chat=True,
        dataset=replace(SPEC.dataset, class_shares=(("fast", 1.0),)),
        extra_body={"top_p": 0.5},
        targets={"fast": Targets(10_000, 10_000)},
    )
    async with mock_server() as mock:
        result = await bench(mock, spec)
        last = mock.generations()[-1]
    assert last.path == "/v1/chat/completions"
    assert (last.headers["x-slo-class"], last.body["top_p"]) == ("fast", 0.5)
    assert last.body["messages"][0]["role"] == "user"
    assert result.metrics.classes[0].attainment.mid == 1.0


async def test_a_slow_server_does_not_slow_an_open_loop() -> None:
    all_are_here = asyncio.Barrier(40)  # nobody is answered before the last has come

    async def wait(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if heard.body.get("stream"):
            await all_are_here.wait()
        await stream_tokens(heard, writer)

    async with mock_server(wait) as mock:
        spec = replace(SPEC, shape=LoadShape(rate=400))

        result = await bench(mock, spec)
    assert result.metrics.completed == 40
    assert result.metrics.max_concurrent_requests == 40


async def test_a_closed_loop_has_so_many_clients() -> None:
    running, most = 0, 0

    async def count(heard: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        if heard.body.get("stream"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
        await stream_tokens(heard, writer)

    async with mock_server(count) as mock:
        result = await bench(mock, replace(SPEC, shape=LoadShape(max_concurrency=3, ramp_up_s=0.02)))
    assert (result.metrics.completed, most) == (40, 3)


async def test_some_clients_leave_and_the_rest_is_not_told_of_it() -> None:
    spec = replace(
        SPEC,
        dataset=replace(SPEC.dataset, num_requests=200, output_tokens=12),
        options=RunOptions(cancel_share=0.4, seed=3),
        shape=LoadShape(max_concurrency=8),
    )
    async with mock_server() as mock:
        result = await bench(mock, spec)
    assert result.metrics.failed == 0
    assert 50 <= result.metrics.cancelled <= 110
    assert all(1 <= len(t.tokens_s) <= 12 for t in result.run.timings)


async def test_errors_of_every_kind_are_counted_and_named() -> None:
    async def broken(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if not heard.body.get("stream"):
            await stream_tokens(heard, writer)
            return
        kind = len(mock.generations()) % 3
        if kind == 0:
            writer.write(document({"error": {"message": "no"}}, 429))
        elif kind == 1:
            writer.write(STREAM_HEAD + chunk(token_event()) + b"0\r\n\r\n")
        else:
            writer.write(STREAM_HEAD + chunk(token_event()))
            writer.close()

    async with mock_server(broken) as mock:
        result = await bench(mock, replace(SPEC, shape=LoadShape(max_concurrency=2)))
    found = result.metrics
    assert (found.completed, found.failed) == (0, 40)
    assert found.refused in (13, 14)
    kinds = " ".join(text for text, _ in found.errors)
    assert all(words in kinds for words in ("status 429", "without [DONE]", "closed the connection"))


async def test_warm_ups_come_before_and_do_not_count() -> None:
    async with mock_server() as mock:
        result = await bench(mock, replace(SPEC, num_warmups=7))
        prompts = [h.body["prompt"] for h in mock.generations() if h.body.get("stream")]
    assert (len(result.run.timings), len(prompts), len(set(prompts))) == (40, 47, 47)


async def test_a_hopeless_run_stops_early() -> None:
    spec = replace(
        SPEC,
        dataset=replace(SPEC.dataset, num_requests=2000),
        shape=LoadShape(max_concurrency=4),
        targets={"": Targets(0.0, 0.0)},
    )
    async with mock_server() as mock:
        result = await bench(mock, spec, OverSaturation(spec.targets, fewest=20))
    assert 20 < len(result.run.timings) < 700
    assert any("stopped early" in note for note in result.notes)


async def test_a_server_that_answers_nothing_is_not_measured() -> None:
    async def refuse(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if heard.body.get("stream"):
            writer.write(document({"error": "x"}, 500))
        else:
            await stream_tokens(heard, writer)

    async with mock_server(refuse) as mock:
        with pytest.raises(ConfigError, match="every request of the warm-up failed; the first: status 500"):
            await bench(mock, replace(SPEC, num_warmups=3))


async def test_the_json_has_vllms_keys_and_no_number_that_is_none() -> None:
    async with mock_server() as mock:
        result = await bench(mock, replace(SPEC, targets={"": Targets(1e4, 1e4)}))
    value = result_json(result, detailed=True)
    for key in (
        *("date", "backend", "model_id", "num_prompts", "request_rate", "burstiness", "max_concurrency", "duration"),
        *("completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput"),
        *("output_throughput", "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"),
        *("mean_ttft_ms", "median_tpot_ms", "std_itl_ms", "p99_e2el_ms", "p99.9_ttft_ms"),
        *("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors"),
    ):
        assert key in value, key
    assert value["request_rate"] == "inf"
    assert value["ttft_stages_ms"] is None
    assert not _not_finite(value)


def _not_finite(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_not_finite, value.values()))
    if isinstance(value, list):
        return any(map(_not_finite, value))
    return isinstance(value, float) and not math.isfinite(value)


def test_a_benchmark_at_another_rate_has_requests_for_the_same_time() -> None:
    found = at_rate(SPEC, 12.5, seconds=10, seed=4)
    assert (found.dataset.num_requests, found.shape.rate, found.dataset.seed, found.options.seed) == (125, 12.5, 4, 4)


async def test_a_closed_loop_ends_after_its_time() -> None:
    async def slow(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if heard.body.get("stream"):
            await asyncio.sleep(0.02)
        await stream_tokens(heard, writer)

    async with mock_server(slow) as mock:
        spec = replace(
            SPEC, dataset=replace(SPEC.dataset, num_requests=5000), shape=LoadShape(max_concurrency=2, seconds=0.3)
        )
        result = await bench(mock, spec)
    assert 2 <= result.metrics.completed <= 2 * 16  # two clients, 20 ms or more each, 0.3 s
