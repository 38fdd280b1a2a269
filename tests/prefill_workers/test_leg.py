"""The prefill leg keeps the prompt and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from core.engine import HttpCall
from core.errors import InvalidRequest
from core.types import Handover
from prefill_workers.leg import OUTPUT_FIELDS, prefill_call

HANDOVER = Handover(transfer_id="t-1", kv_address="10.0.0.2:7000", lease_s=12.5, due_in_s=2.0)
NOW_S = 100.0
PARAMS = {"do_remote_decode": True, "transfer_id": "t-1", "peer": "10.0.0.2:7000", "lease_s": 12.5, "due_s": 102.0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def call(body: object) -> HttpCall:
    return HttpCall("r", "POST", "/v1/completions", (("content-type", "application/json"),), json.dumps(body).encode())


def leg(body: object, **flags: bool) -> object:
    return json.loads(prefill_call(call(body), HANDOVER, now_s=NOW_S, **flags).body)


def test_a_completion_becomes_one_greedy_token() -> None:
    assert leg({"model": "m", "prompt": "p", "max_tokens": 99, "stream": True, "seed": 3}) == {
        "model": "m",
        "prompt": "p",
        "max_tokens": 1,
        "temperature": 0,
        "kv_transfer_params": PARAMS,
    }


def test_what_shapes_a_chat_prompt_stays() -> None:
    shaping = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "documents": [{"text": "d"}],
        "chat_template": "{{ messages }}",
        "chat_template_kwargs": {"enable_thinking": False},
        "add_generation_prompt": False,
        "continue_final_message": True,
        "add_special_tokens": True,
        "truncate_prompt_tokens": 7,
        "reasoning_effort": "low",
        "cache_salt": "s",
        "priority": 3,
        "session_id": "x",
    }
    output = dict.fromkeys(OUTPUT_FIELDS, 1)
    assert leg({**shaping, **output}) == {
        **shaping,
        "max_tokens": 1,
        "temperature": 0,
        "kv_transfer_params": PARAMS,
    }


def test_the_clients_own_transfer_params_are_replaced() -> None:
    made = leg({"prompt": "p", "kv_transfer_params": {"peer": "evil:1"}, "vllm_xargs": {"kv_transfer_params": "x"}})
    assert made == {"prompt": "p", "max_tokens": 1, "temperature": 0, "kv_transfer_params": PARAMS}


@pytest.mark.parametrize("choice", [None, "none", "auto", "required", {"type": "function", "function": {"name": "f"}}])
def test_no_tool_choice_compiles_a_grammar(choice: object) -> None:
    made = leg({"messages": [], "tools": [TOOL], "tool_choice": choice})
    assert isinstance(made, dict)
    assert (made["tools"], made["tool_choice"]) == ([TOOL], "none")


@pytest.mark.parametrize(("choice", "expected"), [("required", "auto"), ("auto", "auto"), ("none", "none")])
def test_tools_stay_visible_where_none_would_hide_them(choice: str, expected: str) -> None:
    made = leg({"messages": [], "tools": [TOOL], "tool_choice": choice}, tools_hidden_by_none=True)
    assert isinstance(made, dict)
    assert made["tool_choice"] == expected


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_object_is_left_to_the_engine(body: bytes) -> None:
    given = HttpCall("r", "POST", "/v1/completions", (), body)
    assert prefill_call(given, HANDOVER, now_s=NOW_S) is given


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]], []])
def test_several_prompts_are_refused(prompt: object) -> None:
    if prompt == []:
        assert leg({"prompt": prompt}) is not None  # the engine's own layer refuses it
        return
    with pytest.raises(InvalidRequest) as caught:
        leg({"prompt": prompt})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2, 3], [[1, 2, 3]]])
def test_one_prompt_in_any_form_is_taken(prompt: object) -> None:
    made = leg({"prompt": prompt})
    assert isinstance(made, dict)
    assert made["prompt"] == prompt


def test_a_request_that_nobody_waits_for_is_due_with_its_lease() -> None:
    patient = replace(HANDOVER, due_in_s=None)
    body = json.loads(prefill_call(call({"prompt": "p"}), patient, now_s=NOW_S).body)
    assert body["kv_transfer_params"]["due_s"] is None
