"""Rewrites an OpenAI request into its prefill leg: the same prompt, one token, KV sent away.

Owns which fields shape the prompt. Pure functions over bytes; must not know the engine.
"""

from __future__ import annotations

import json
from dataclasses import replace

from core.engine import HttpCall
from core.errors import InvalidRequest
from core.types import Handover

# Fields that shape only the output, by vLLM 0.32's CompletionRequest and ChatCompletionRequest. A field not named here
# stays: an unknown one may shape the prompt, and prompts that differ cost a recomputation on the decode side.
OUTPUT_FIELDS = frozenset(
    {
        *("max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos", "n", "best_of", "use_beam_search"),
        *("stream", "stream_options", "stream_interval", "echo", "include_stop_str_in_output"),
        *("temperature", "top_p", "top_k", "min_p", "seed", "length_penalty", "repetition_detection"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "bad_words"),
        *("allowed_token_ids", "stop", "stop_token_ids", "logprobs", "top_logprobs", "prompt_logprobs"),
        *("logprob_token_ids", "return_tokens_as_token_ids", "return_token_ids", "return_token_offsets"),
        *("return_prompt_text", "return_mm_kwargs", "routed_experts_prompt_start", "skip_special_tokens"),
        *("spaces_between_special_tokens", "thinking_token_budget", "parallel_tool_calls", "watermarking"),
        *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice"),
        *("guided_grammar", "structural_tag"),
        *("kv_transfer_params", "ec_transfer_params", "vllm_xargs"),
    }
)


def prefill_call(call: HttpCall, handover: Handover, *, now_s: float, tools_hidden_by_none: bool = False) -> HttpCall:
    """Return `call` with the body of its prefill leg; `now_s` is the machine's monotonic clock, the engine's too.

    A body that is no JSON object is left for the engine to refuse. `tools_hidden_by_none` says that the engine leaves
    the tools out of the prompt when tool_choice is "none". Raises InvalidRequest for more than one prompt.
    """
    try:
        body = json.loads(call.body)
    except (ValueError, RecursionError):
        return call
    if not isinstance(body, dict):
        return call
    return replace(call, body=json.dumps(_leg(body, handover, now_s, tools_hidden_by_none)).encode())


def _leg(body: dict[str, object], handover: Handover, now_s: float, tools_hidden_by_none: bool) -> dict[str, object]:
    _require_one_prompt(body)
    leg = {name: value for name, value in body.items() if name not in OUTPUT_FIELDS}
    leg["max_tokens"] = 1
    leg["temperature"] = 0
    # "required", a named tool and "auto" with strict tools compile a grammar; the rendered prompt is that of "none"
    # (vLLM 0.32, renderers/online_renderer.py) unless the engine hides the tools then.
    if leg.get("tools"):
        keep_none = leg.get("tool_choice") == "none" or not tools_hidden_by_none
        leg["tool_choice"] = "none" if keep_none else "auto"
    leg["kv_transfer_params"] = {
        "do_remote_decode": True,
        "transfer_id": handover.transfer_id,
        "peer": handover.kv_address,
        "lease_s": handover.lease_s,
        "due_s": None if handover.due_in_s is None else now_s + handover.due_in_s,
    }
    return leg


def _require_one_prompt(body: dict[str, object]) -> None:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) != 1 and not all(isinstance(t, int) for t in prompt):
        raise InvalidRequest("a hand-over carries exactly one prompt", param="prompt")
