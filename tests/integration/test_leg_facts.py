"""What workers measure of both legs of a request is what is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from core.engine import HttpCall
from core.types import Handover, LegFacts
from tests.integration.test_parity import COMPLETIONS, completion
from tests.support.openai_http import Json
from tests.support.stack import CHUNK_TOKENS, LEASE_S, Stack

pytestmark = pytest.mark.engine

PROMPT_TOKENS, BLOCK = 700, 32


@pytest.fixture(autouse=True)
def nothing_held(stack: Stack) -> Iterator[None]:
    yield
    stack.inject({})
    stack.assert_nothing_held()


def legs(stack: Stack, body: Json, transfer_id: str) -> tuple[LegFacts, LegFacts]:
    """Run both legs of a completion past the router; return what prefill and decode measured."""
    decode = stack.workers["decode-0"].hello
    assert decode is not None
    handover = Handover(transfer_id, decode.kv_address, LEASE_S)
    headers = (("content-type", "application/json"),)
    call = HttpCall(f"req-{transfer_id}", "POST", COMPLETIONS, headers, json.dumps(body).encode())
    return stack.legs(call, handover)


def assert_ordered(facts: LegFacts) -> None:
    assert 0 < facts.queued_s < LEASE_S + 5
    assert 0 < facts.prefill_s < LEASE_S


def test_both_legs_know_their_parts(stack: Stack) -> None:
    body = completion(PROMPT_TOKENS, of=900)
    prefill, decode = legs(stack, body, "facts-1")
    assert (prefill.prompt_tokens, prefill.cached_tokens, prefill.received_tokens) == (PROMPT_TOKENS, 0, 0)
    assert (decode.prompt_tokens, decode.cached_tokens, decode.received_tokens) == (PROMPT_TOKENS, 0, PROMPT_TOKENS)
    assert_ordered(prefill)
    assert_ordered(decode)
    # Decode was asked at the same time, give or take the time until either engine has the request, and cannot begin
    # before prefill is done.
    assert decode.queued_s > prefill.prefill_s / 2
    assert decode.prefill_s < prefill.prefill_s  # one token against all of them
    assert 0 < decode.blocks_s < decode.landed_s <= decode.queued_s
    assert prefill.blocks_s == prefill.landed_s == 0
    last = stack.state("prefill-0")  # of two steps, for a step computes CHUNK_TOKENS
    assert (last.step_prompt_tokens, last.step_seqs) == (PROMPT_TOKENS - CHUNK_TOKENS, 1)
    assert last.step_s < prefill.prefill_s

    cached = (PROMPT_TOKENS - 1) // BLOCK * BLOCK
    prefill, decode = legs(stack, body, "facts-2")
    assert (prefill.prompt_tokens, prefill.cached_tokens, prefill.received_tokens) == (PROMPT_TOKENS, cached, 0)
    assert (decode.cached_tokens, decode.received_tokens) == (cached, PROMPT_TOKENS - cached)


def test_nothing_counts_as_received_of_a_handover_that_fails(stack: Stack) -> None:
    shared = completion(4 * BLOCK, of=901)
    legs(stack, shared, "facts-3")  # both sides hold the first blocks from here on
    more = completion(PROMPT_TOKENS, of=902)["prompt"]
    stack.inject({"drop_layer": 1})
    _, decode = legs(stack, {**shared, "prompt": [*shared["prompt"], *more]}, "facts-4")
    assert (decode.prompt_tokens, decode.cached_tokens) == (PROMPT_TOKENS + 4 * BLOCK, 4 * BLOCK)
    assert (decode.received_tokens, decode.landed_s) == (0, 0)
