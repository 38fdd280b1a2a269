"""Pieces stand for beginnings of prompts, and for nothing that others have.

Properties: prompts with an equal beginning have equal pieces for as long as it lasts, and unequal ones from where they
part; another tenant, model, cache_salt or layout shares none; any JSON gives pieces, never an error; what is learnt of
tokens stays between the ratios seen.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.prefix_index import PIECE_ENDS
from router.prompt_pieces import PromptPieces, TokenEstimate, chat_pieces, completion_pieces

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
texts = st.text(st.characters(codec="utf-8"), max_size=40).map(lambda text: text * 40)
roles = st.sampled_from(("system", "user", "assistant", "tool"))
messages = st.lists(st.builds(lambda role, text: {"role": role, "content": text}, roles, texts), min_size=1, max_size=6)


def completion(prompt: object, tenant: str = "t", **fields: object) -> PromptPieces:
    return completion_pieces({"model": "m", "prompt": prompt} | fields, tenant)


def chat(turns: object, tenant: str = "t", **fields: object) -> PromptPieces:
    return chat_pieces({"model": "m", "messages": turns} | fields, tenant)


def whole_pieces(num_bytes: int) -> int:
    return sum(4 * end <= num_bytes for end in PIECE_ENDS)


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@settings(deadline=None)
@given(texts, texts, texts)
def test_equal_beginnings_have_equal_pieces_and_others_do_not(head: str, one: str, other: str) -> None:
    a, b = (head + one).encode(), (head + other).encode()
    equal = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    left, right = completion(head + one), completion(head + other)
    assert (len(left.pieces), left.num_bytes) == (whole_pieces(len(a)), len(a))
    assert common(left.pieces, right.pieces) == whole_pieces(equal)
    assert set(left.pieces[whole_pieces(equal) :]).isdisjoint(right.pieces)


@settings(deadline=None)
@given(messages, messages)
def test_a_conversation_that_goes_on_keeps_its_pieces(turns: list[object], more: list[object]) -> None:
    before, after = chat(turns), chat(turns + more)
    assert after.pieces[: len(before.pieces)] == before.pieces
    assert after.num_bytes > before.num_bytes


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300), st.lists(st.integers(0, 9), max_size=300))
def test_token_ids_are_counted_exactly(ids: list[int], more: list[int]) -> None:
    before, after = completion(ids), completion(ids + more)
    assert (before.num_tokens, len(before.pieces)) == (len(ids), whole_pieces(4 * len(ids)))
    assert after.pieces[: len(before.pieces)] == before.pieces
    assert completion([ids]) == before


LONG = "a long story " * 100


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "u"},
        {"model": "adapter"},
        {"cache_salt": "s"},
        {"chat_template": "x"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"documents": [{"text": "d"}]},
        {"add_special_tokens": False},
    ],
)
def test_another_salt_shares_nothing(fields: dict[str, str]) -> None:
    turns = [{"role": "user", "content": LONG}]
    assert set(chat(turns).pieces).isdisjoint(chat(turns, **fields).pieces)
    assert set(completion(LONG).pieces).isdisjoint(completion(LONG, **fields).pieces)
    assert len(chat(turns, **fields).pieces) == len(chat(turns).pieces) == whole_pieces(len(LONG))


@given(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9), st.text(max_size=9))
def test_salts_are_not_confused(tenant: str, model: str, other_tenant: str, other_model: str) -> None:
    one, other = completion(LONG, tenant, model=model), completion(LONG, other_tenant, model=other_model)
    assert (one.pieces == other.pieces) is ((tenant, model) == (other_tenant, other_model))


def test_text_and_token_ids_share_nothing() -> None:
    text = "abcd" * 64
    ids = [int.from_bytes(b"abcd", "little")] * 64
    assert set(completion(text).pieces).isdisjoint(completion(ids).pieces)


def test_tools_and_tool_calls_are_part_of_the_prompt() -> None:
    turns = [{"role": "user", "content": LONG}]
    call = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, *turns]
    other = [{"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": "{}"}}]}, *turns]
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert set(chat(turns).pieces).isdisjoint(chat(turns, tools=tools).pieces)
    assert set(chat(call).pieces).isdisjoint(chat(other).pieces)
    assert chat(turns, tools=tools).num_bytes > chat(turns).num_bytes > len(LONG)


def test_text_parts_are_text_and_an_image_ends_the_pieces() -> None:
    part, image = {"type": "text", "text": LONG}, {"type": "image_url", "image_url": {"url": "data:..."}}
    plain = chat([{"role": "user", "content": LONG}])
    assert chat([{"role": "user", "content": [part]}]) == plain
    shown = chat([{"role": "user", "content": [part, image, part]}, {"role": "user", "content": LONG}])
    assert shown.pieces == plain.pieces
    assert shown.num_bytes > 2 * len(LONG)
    assert chat([{"role": "user", "content": [image]}, {"role": "user", "content": LONG}]).pieces == ()


def test_several_prompts_have_a_length_only() -> None:
    assert completion(["ab", "cd", [1, 2]]) == PromptPieces((), 2 + 2 + 8)


def test_what_cannot_be_written_out_is_left_to_the_worker() -> None:
    nested: object = "x"
    for _ in range(1_000):
        nested = [nested]
    body = {"role": "user", "content": "hi", "odd": nested}
    assert chat([body], tools=nested, model=nested, cache_salt=nested, documents=nested).num_bytes > 0
    assert completion("x", model=nested).num_bytes == 1
    assert completion([1, "x"]).pieces == completion([-1] * 100).pieces == completion([1.5]).pieces == ()


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(("model", "prompt", "messages", "tools", "cache_salt")), json_values), messages)
def test_any_json_has_pieces_of_its_length(fields: dict[str, object], turns: list[object]) -> None:
    for read in (completion_pieces, chat_pieces):
        made = read(fields, "t")
        assert len(made.pieces) <= whole_pieces(made.num_bytes)
    odd = list(fields.values())
    assert chat(turns + odd).pieces[: len(chat(turns).pieces)] == chat(turns).pieces


def test_a_fresh_estimate_is_the_usual_one() -> None:
    assert (TokenEstimate().tokens(400), TokenEstimate().tokens(0)) == (100, 1)


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(1, 50_000)), max_size=40))
def test_the_estimate_stays_between_what_was_seen(counts: list[tuple[int, int]]) -> None:
    estimate = TokenEstimate()
    for num_bytes, tokens in counts:
        estimate.observe(num_bytes, tokens)
    ratios = [4.0, *(min(max(b / t, 0.25), 16.0) for b, t in counts)]
    assert min(ratios) - 1e-9 <= estimate.bytes_per_token <= max(ratios) + 1e-9


def test_the_estimate_learns_and_forgets() -> None:
    estimate = TokenEstimate()
    for bytes_per_token in (2.0, 5.0):
        for _ in range(2_000):
            estimate.observe(3_000, round(3_000 / bytes_per_token))
        assert estimate.bytes_per_token == pytest.approx(bytes_per_token, rel=0.05)
    before = estimate.bytes_per_token
    estimate.observe(10_000_000, 1_000)
    assert estimate.bytes_per_token < 2.1 * before
    estimate.observe(0, 10)
    estimate.observe(10, 0)
