"""Rewrites an OpenAI request into its decode leg, or into one no client can steer KV with.

Owns the keys that reach the KV connector. Pure functions over bytes; must not know the engine.
"""

from __future__ import annotations

import json
from dataclasses import replace

from core.engine import HttpCall
from core.errors import InvalidRequest
from core.types import Handover

# vLLM 0.32 copies these, and what vllm_xargs and extra_args hold under the same names, to the connectors.
TRANSFER_FIELDS = frozenset({"kv_transfer_params", "ec_transfer_params"})
_NESTS = ("vllm_xargs", "extra_args", "sampling_params")
# Without one of these in its bytes, a body can hold no transfer field: the name itself, a \u escape that may spell it,
# or a zero byte as in UTF-16 and UTF-32, which the engine's JSON parser accepts too.
_MARKS = (b"transfer_params", b"\\u", b"\x00")


def whole_call(call: HttpCall) -> HttpCall:
    """Return `call` without anything that steers KV; unchanged if there was nothing."""
    if not any(mark in call.body for mark in _MARKS):
        return call
    body = _parse(call.body)
    if body is None or not _strip(body):
        return call
    return replace(call, body=json.dumps(body).encode())


def decode_call(call: HttpCall, handover: Handover) -> HttpCall:
    """Return `call` with the body of its decode leg; a body that is no JSON object is left for the engine to refuse.

    Raises InvalidRequest for more than one sequence: all would wait for the same hand-over.
    """
    body = _parse(call.body)
    if body is None:
        return call
    _require_one_sequence(body)
    _strip(body)
    body["kv_transfer_params"] = {
        "do_remote_prefill": True,
        "transfer_id": handover.transfer_id,
        "lease_s": handover.lease_s,
    }
    return replace(call, body=json.dumps(body).encode())


def _parse(data: bytes) -> dict[str, object] | None:
    """Parse as the engine's own layer does (the json module), so that no body reads otherwise here."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _strip(body: dict[str, object]) -> bool:
    """Delete every transfer field in place; return whether there was one."""
    found = [name for name in TRANSFER_FIELDS if name in body]
    for name in found:
        del body[name]
    nested = [body[name] for name in _NESTS if name in body]
    # A list, not any(): each nest is to be stripped.
    return any([bool(found), *(_strip(value) for value in nested if isinstance(value, dict))])


def _require_one_sequence(body: dict[str, object]) -> None:
    for field in ("n", "best_of"):
        if body.get(field) not in (None, 1):
            raise InvalidRequest(f"a hand-over carries exactly one sequence, not {field}={body[field]}", param=field)
    if body.get("use_beam_search"):
        raise InvalidRequest("a hand-over carries exactly one sequence, not beam search", param="use_beam_search")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) != 1 and not all(isinstance(t, int) for t in prompt):
        raise InvalidRequest("a hand-over carries exactly one prompt", param="prompt")
