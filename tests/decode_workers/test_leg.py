"""The decode leg changes nothing but the hand-over, and no client steers KV on any leg."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine import HttpCall
from core.errors import InvalidRequest
from core.types import Handover
from decode_workers.leg import decode_call, whole_call

HANDOVER = Handover(transfer_id="t-1", kv_address="10.0.0.2:7000", lease_s=12.5)
PARAMS = {"do_remote_prefill": True, "transfer_id": "t-1", "lease_s": 12.5}
STEERING = {"do_remote_decode": True, "peer": "evil:1"}


def call(body: bytes) -> HttpCall:
    return HttpCall("r", "POST", "/v1/completions", (("content-type", "application/json"),), body)


def decoded(body: object) -> object:
    return json.loads(decode_call(call(json.dumps(body).encode()), HANDOVER).body)


def test_a_decode_leg_keeps_every_other_field() -> None:
    body = {"model": "m", "prompt": "p", "stream": True, "n": 1, "logprobs": 3, "vllm_xargs": {"a": 1}, "x": None}
    assert decoded(body) == {**body, "kv_transfer_params": PARAMS}


def test_a_decode_leg_replaces_the_clients_params() -> None:
    body = {"prompt": "p", "kv_transfer_params": STEERING, "ec_transfer_params": STEERING}
    assert decoded(body) == {"prompt": "p", "kv_transfer_params": PARAMS}


@pytest.mark.parametrize(
    ("field", "value"), [("n", 2), ("best_of", 3), ("use_beam_search", True), ("prompt", ["a", "b"]), ("n", "two")]
)
def test_a_decode_leg_is_one_sequence(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded({"prompt": "p", field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_body_that_is_no_object_is_left_to_the_engine(body: bytes) -> None:
    assert decode_call(call(body), HANDOVER).body == body
    assert whole_call(call(body)).body == body


def test_an_ordinary_whole_body_keeps_its_bytes() -> None:
    body = b'{"prompt": "line\\nbreak \\u00e4",  "max_tokens":4}'
    assert whole_call(call(body)).body == body


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params", "kv_transfer\\u005fparams"])
@pytest.mark.parametrize("value", ["1", "NaN", '{"peer": "evil:1"}'])
def test_no_spelling_of_a_transfer_field_passes(encoding: str, name: str, value: str) -> None:
    text = f'{{"prompt": "p", "temperature": Infinity, "{name}": {value}, "{name}": 2}}'
    assert json.loads(whole_call(call(text.encode(encoding))).body) == {"prompt": "p", "temperature": float("inf")}


@pytest.mark.parametrize("nest", ["vllm_xargs", "extra_args", "sampling_params"])
def test_transfer_fields_are_deleted_where_vllm_would_look(nest: str) -> None:
    body = {"prompt": "p", nest: {"kv_transfer_params": STEERING, "keep": 1}}
    made = json.loads(whole_call(call(json.dumps(body).encode())).body)
    assert made == {"prompt": "p", nest: {"keep": 1}}


KEYS = st.sampled_from(["prompt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs", "extra_args", "é\\u"])
BODIES = st.dictionaries(
    KEYS, st.recursive(st.integers() | st.text(), lambda inner: st.dictionaries(KEYS, inner), max_leaves=6)
)


@given(body=BODIES, ascii_only=st.booleans(), encoding=st.sampled_from(["utf-8", "utf-16", "utf-32-be"]))
def test_what_remains_is_the_body_without_transfer_fields(
    body: dict[str, object], ascii_only: bool, encoding: str
) -> None:
    """For every body and encoding: no transfer field at a place vLLM reads, and all else as it was."""

    def without(value: dict[str, object]) -> dict[str, object]:
        kept = {k: v for k, v in value.items() if k not in ("kv_transfer_params", "ec_transfer_params")}
        return {
            k: without(v) if k in ("vllm_xargs", "extra_args") and isinstance(v, dict) else v for k, v in kept.items()
        }

    data = json.dumps(body, ensure_ascii=ascii_only).encode(encoding)
    assert json.loads(whole_call(call(data)).body) == without(body)
