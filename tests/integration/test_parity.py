"""Output through prefill and decode pools equals that of one vLLM engine, token for token and field for field.

Both run the same model in float32 with equal chunk budgets. `landed` counts the hand-overs that reached the decode
engine, so that no case can pass by quietly serving from one pool. All of it is done once for each transport.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.openai_http import Json, assert_same, post, stream, strip
from tests.support.stack import CHUNK_TOKENS, DECODE_KV_TOKENS, TRANSPORTS, Stack

pytestmark = pytest.mark.engine

LENGTHS = (1, 2, 31, 32, 33, 64, 65, 100, 250, 511, CHUNK_TOKENS, CHUNK_TOKENS + 1, 777, 1500, 2100)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module", params=TRANSPORTS, autouse=True)
def transport(request: pytest.FixtureRequest, stack: Stack) -> Iterator[str]:
    """Hand everything over by one transport, from empty caches."""
    name: str = request.param
    stack.reset_prefix_caches()
    stack.use_transport(name)
    before = stack.handovers()
    yield name
    after = stack.handovers()
    stack.use_transport(None)
    assert [other for other in TRANSPORTS if after[other] > before[other]] == [name]


@pytest.fixture(autouse=True)
def nothing_held(stack: Stack) -> Iterator[None]:
    yield
    stack.assert_nothing_held()


def prompt(tokens: int, of: int) -> list[int]:
    """Make a prompt of exactly so many ordinary tokens; prompts of different numbers share no prefix."""
    return [random.Random(of * 100_003 + i).randrange(300, 2000) for i in range(tokens)]


def completion(tokens: int, of: int, **extra: object) -> Json:
    """Describe a greedy completion of the prompt number `of`."""
    return {"model": "demo", "prompt": prompt(tokens, of), "max_tokens": 12, "temperature": 0, **extra}


def assert_equal(stack: Stack, path: str, body: Json) -> Json:
    """Compare the unary answers and return Baton's."""
    status, ours = post(stack.url, path, body)
    expected_status, expected = post(stack.one_pool_url, path, body)
    assert (status, expected_status) == (200, 200), ours
    assert_same(strip(ours), strip(expected))
    return ours


def assert_equal_stream(stack: Stack, path: str, body: Json) -> None:
    ours, expected = stream(stack.url, path, body), stream(stack.one_pool_url, path, body)
    assert_same(ours.choices, expected.choices)
    assert ours.usage == expected.usage
    assert (ours.errors, ours.done) == ([], True)


def answers_at_once(url: str, path: str, bodies: list[Json]) -> list[Json]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return [strip(answer) for _, answer in pool.map(lambda body: post(url, path, body), bodies)]


@pytest.mark.parametrize("tokens", LENGTHS)
def test_prompt_lengths_around_blocks_and_chunks(stack: Stack, tokens: int) -> None:
    before = stack.landed()
    assert_equal(stack, COMPLETIONS, completion(tokens, of=tokens, logprobs=3))
    # A prompt of one token has nothing to hand over: its KV is recomputed on decode in any case.
    assert stack.landed() - before == (1 if tokens > 1 else 0)


def test_eight_at_once(stack: Stack) -> None:
    before = stack.landed()
    lengths = (40, 1000, 64, 1500, 33, 900, 200, 500)
    bodies = [completion(tokens, of=50 + i) for i, tokens in enumerate(lengths)]
    assert answers_at_once(stack.url, COMPLETIONS, bodies) == answers_at_once(stack.one_pool_url, COMPLETIONS, bodies)
    assert stack.landed() - before == len(bodies)


def test_zeroed_kv_changes_the_output(stack: Stack) -> None:
    """The negative control: decode really uses the KV that prefill sent."""
    stack.inject({"zero_blocks": 1})
    try:
        _, ours = post(stack.url, COMPLETIONS, completion(300, of=60))
    finally:
        stack.inject({})
    _, expected = post(stack.one_pool_url, COMPLETIONS, completion(300, of=60))
    assert strip(ours)["choices"] != strip(expected)["choices"]
    stack.reset_prefix_caches()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "seed": 11, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
        {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"repetition_penalty": 1.3},
        {"logprobs": 5},
        {"stop": ["e", "\n"]},
        {"stop_token_ids": [265, 270, 280], "min_tokens": 4},
        {"min_tokens": 12, "max_tokens": 20},
        {"ignore_eos": True, "max_tokens": 40},
        {"logit_bias": {"300": 5.0, "301": -100.0}},
        {"include_stop_str_in_output": True, "stop": ["a"]},
        {"return_token_ids": True},
        {"truncate_prompt_tokens": 50},
        {"suffix": None, "user": "someone", "allowed_token_ids": [400, 401, 402, 403]},
    ],
    ids=lambda options: "+".join(options),
)
def test_sampling_options(stack: Stack, options: Json) -> None:
    body = completion(130, of=70, **options)
    before = stack.landed()
    assert_equal(stack, COMPLETIONS, body)
    assert_equal_stream(stack, COMPLETIONS, {**body, "stream_options": {"include_usage": True}})
    assert stack.landed() - before >= 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"n": 2, "temperature": 1.0, "seed": 3}, "n>1"),
        ({"prompt_logprobs": 2}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": [[400, 401, 402], [500, 501]]}, "several prompts"),
        ({"prompt": ["Now is the winter", "To be, or not"]}, "several prompts"),
        ({"use_beam_search": True, "n": 2}, "beam search"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_requests_that_cannot_use_sent_kv_are_served_all_the_same(stack: Stack, options: Json, why: str) -> None:
    before = stack.landed()
    assert_equal(stack, COMPLETIONS, {**completion(100, of=80), **options})
    assert stack.landed() == before, f"{why} must be served by decode alone"


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_schema(stack: Stack) -> None:
    schema = {"name": "person", "schema": SCHEMA}
    body = chat("Who art thou?", response_format={"type": "json_schema", "json_schema": schema}, max_tokens=60)
    before = stack.landed()
    assert_equal(stack, CHAT, body)
    assert stack.landed() - before == 1
    assert_equal_stream(stack, CHAT, {**body, "messages": body["messages"] + chat("And now?")["messages"]})


def test_structured_regex_on_completions(stack: Stack) -> None:
    answer = assert_equal(stack, COMPLETIONS, completion(90, of=85, structured_outputs={"regex": "[0-9]{3}-[a-z]{2}"}))
    text = answer["choices"][0]["text"]
    assert len(text) == 6
    assert text[3] == "-"


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a place",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "maxLength": 6}},
                "required": ["place"],
            },
        },
    }
]


def chat(text: str, **extra: object) -> Json:
    messages = [{"role": "system", "content": "You speak in verse."}, {"role": "user", "content": text}]
    return {"model": "demo", "messages": messages, "max_tokens": 16, "temperature": 0, **extra}


def test_chat(stack: Stack) -> None:
    before = stack.landed()
    assert_equal(stack, CHAT, chat("What news from the king? " * 8))
    assert_equal(stack, CHAT, chat("Speak, I charge thee.", logprobs=True, top_logprobs=3, temperature=1.0, seed=5))
    assert_equal_stream(stack, CHAT, chat("Good morrow, cousin. " * 4, stream_options={"include_usage": True}))
    assert stack.landed() - before == 3


@pytest.mark.parametrize(
    "choice", ["none", "auto", "required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_tools(stack: Stack, choice: object) -> None:
    before = stack.landed()
    body = chat(f"How is the weather in Rome? ({choice})", tools=TOOLS, tool_choice=choice, max_tokens=40)
    assert_equal(stack, CHAT, body)
    assert stack.landed() - before == 1
    again = {**body, "messages": [*body["messages"], {"role": "user", "content": "And in Verona?"}]}
    assert_equal_stream(stack, CHAT, again)


def test_tool_results_and_history_in_the_prompt(stack: Stack) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": '{"place": "Rome"}'}}
    messages = [
        {"role": "user", "content": "How is the weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "It rains."},
        {"role": "user", "content": "Say it plainly."},
    ]
    assert_equal(stack, CHAT, {**chat(""), "messages": messages, "tools": TOOLS})


def test_prefix_cached_on_both_sides(stack: Stack) -> None:
    body = completion(200, of=90)
    first = assert_equal(stack, COMPLETIONS, body)
    sent = stack.bytes_landed()
    again = assert_equal(stack, COMPLETIONS, body)
    longer = {**body, "prompt": body["prompt"] + prompt(100, of=91)}
    assert_equal(stack, COMPLETIONS, longer)
    assert strip(again)["choices"] == strip(first)["choices"]
    # 200 tokens are 6 whole blocks, in both caches after the first answer: only what lacks is sent.
    assert stack.bytes_landed() - sent == stack.block_bytes() * (1 + 4)


def test_prefix_cached_on_prefill_only(stack: Stack) -> None:
    body = completion(300, of=95)
    assert_equal(stack, COMPLETIONS, body)
    stack.reset_prefix_cache("decode-0")
    sent = stack.bytes_landed()
    assert_equal(stack, COMPLETIONS, body)
    assert stack.bytes_landed() - sent == stack.block_bytes() * 10  # cached blocks are sent, not only new ones


def test_prefix_cached_on_decode_only(stack: Stack) -> None:
    body = completion(300, of=97)
    assert_equal(stack, COMPLETIONS, body)
    stack.reset_prefix_cache("prefill-0")
    assert_equal(stack, COMPLETIONS, body)


def test_decode_short_of_blocks_preempts_and_stays_equal(stack: Stack) -> None:
    bodies = [completion(400, of=110 + i, max_tokens=400, ignore_eos=True) for i in range(9)]
    assert sum(len(body["prompt"]) + body["max_tokens"] for body in bodies) > DECODE_KV_TOKENS
    before = stack.preemptions("decode-0")
    ours = answers_at_once(stack.url, COMPLETIONS, bodies)
    assert stack.preemptions("decode-0") > before
    assert ours == answers_at_once(stack.one_pool_url, COMPLETIONS, bodies)


def test_lora(stack: Stack) -> None:
    before = stack.landed()
    adapted = assert_equal(stack, COMPLETIONS, completion(150, of=120, model="demo-lora"))
    base = assert_equal(stack, COMPLETIONS, completion(150, of=120))
    assert adapted["choices"][0]["text"] != base["choices"][0]["text"]
    assert stack.landed() - before == 2


@pytest.mark.parametrize("path", ["/v1/models", "/version"])
def test_plain_routes_answer(stack: Stack, path: str) -> None:
    assert httpx.get(stack.url + path, timeout=30).status_code == 200


def test_worker_metrics_carry_those_of_the_hand_over(stack: Stack) -> None:
    post(stack.url, COMPLETIONS, completion(200, of=130))
    text = httpx.get(stack.url + "/workers/decode-0/metrics", timeout=30).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert "vllm:num_requests_running" in families
    (imbalance,) = families["baton_kv_lease_imbalance_blocks"].samples
    assert imbalance.value == 0
    assert sum(sample.value for sample in families["baton_kv_landed_bytes"].samples) > 0


def test_decode_reads_the_cache_of_prefill_where_the_transport_can(stack: Stack, transport: str) -> None:
    def uncopied() -> int:
        return int(str(stack.kv_stats("prefill-0")["bytes_uncopied"]))

    before = uncopied()
    for number in range(2):  # the first hand-over to a peer is copied out
        post(stack.url, COMPLETIONS, completion(200, of=131 + number))
    assert (uncopied() > before) == (transport == "shm")


def test_tokenize_equals(stack: Stack) -> None:
    body = {"model": "demo", "prompt": "Friends, Romans, countrymen"}
    _, ours = post(stack.url, "/tokenize", body)
    assert ours == post(stack.one_pool_url, "/tokenize", body)[1]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "nobody", "prompt": "x"},
        {"model": "demo", "prompt": prompt(5000, 1), "max_tokens": 10},
        {"model": "demo", "prompt": "x", "max_tokens": "many"},
        {"model": "demo", "prompt": "x", "max_tokens": -1},
        {"model": "demo", "prompt": "x", "temperature": -2},
        {"model": "demo"},
        {"model": "demo", "prompt": "x", "logprobs": 10_000},
    ],
    ids=["unknown model", "too long", "wrong type", "negative", "bad temperature", "no prompt", "too many logprobs"],
)
def test_refusals_equal(stack: Stack, body: Json) -> None:
    status, ours = post(stack.url, COMPLETIONS, body)
    expected_status, expected = post(stack.one_pool_url, COMPLETIONS, body)
    assert status == expected_status
    assert 400 <= status < 500
    assert ours["error"].keys() == expected["error"].keys()
    assert ours["error"]["message"] == expected["error"]["message"]
