"""Each parameter of the OpenAI API, what becomes of it, and an example that shows it.

docs/api.md has the tables that `write` makes of this; tests/integration/test_api_parameters.py sends every example to
Baton and to one plain vLLM engine. `python -m tests.support.api_parameters docs/api.md` writes the tables anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]
PROMPT: Final = "Now is the winter of our discontent made glorious summer by this sun of York; and all the clouds"
CHAT_BASE: Final[Json] = {
    "model": "demo",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 8,
    "temperature": 0,
}
COMPLETION_BASE: Final[Json] = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}


class Becomes(StrEnum):
    """What becomes of a request with a parameter."""

    PAIR = "same as one pool"
    WHOLE = "same as one pool; runs whole on one worker"
    IGNORED = "ignored, as by one pool"
    REFUSED = "refused with 400, as by one pool"
    OURS = "refused with 400"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of one route."""

    name: str
    becomes: Becomes
    example: Any  # its value
    also: Mapping[str, Any] | None = None  # what the example needs beside it
    note: str = ""

    def body(self, base: Json) -> Json:
        """Make the example's request."""
        return {**base, self.name.partition(" ")[0]: self.example, **(self.also or {})}


_TOOL: Final[Json] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "maxLength": 6}},
            "required": ["place"],
        },
    },
}
_SCHEMA: Final[Json] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}
_FORMAT: Final[Json] = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA}}
_SAMPLED: Final[Json] = {"temperature": 1.0, "seed": 7}
_HANDOVER = Becomes.OURS

# What both routes take.
_COMMON: Final = (
    Parameter("model", Becomes.PAIR, "demo", note="the model, or one of `model.lora`; others get 404"),
    Parameter("max_tokens", Becomes.PAIR, 20),
    Parameter("temperature", Becomes.PAIR, 0.8, {"seed": 5}),
    Parameter("top_p", Becomes.PAIR, 0.7, _SAMPLED),
    Parameter("n", Becomes.WHOLE, 2, _SAMPLED),
    Parameter("seed", Becomes.PAIR, 11, {"temperature": 1.0}),
    Parameter("stop", Becomes.PAIR, ["e"]),
    Parameter("frequency_penalty", Becomes.PAIR, 0.7),
    Parameter("presence_penalty", Becomes.PAIR, 1.5),
    Parameter("logit_bias", Becomes.PAIR, {"300": 5.0, "301": -100.0}),
    Parameter("stream", Becomes.PAIR, True),
    Parameter("stream_options", Becomes.PAIR, {"include_usage": True}, {"stream": True}),
    Parameter("user", Becomes.IGNORED, "someone"),
    Parameter("response_format", Becomes.PAIR, _FORMAT, {"max_tokens": 40}),
)
# vLLM's own, on both routes.
_OF_VLLM: Final = (
    Parameter("top_k", Becomes.PAIR, 40, _SAMPLED),
    Parameter("min_p", Becomes.PAIR, 0.05, _SAMPLED),
    Parameter("repetition_penalty", Becomes.PAIR, 1.3),
    Parameter("min_tokens", Becomes.PAIR, 8, {"stop": ["e"]}),
    Parameter("ignore_eos", Becomes.PAIR, True),
    Parameter("stop_token_ids", Becomes.PAIR, [265, 270, 280]),
    Parameter("include_stop_str_in_output", Becomes.PAIR, True, {"stop": ["e"]}),
    Parameter("bad_words", Becomes.PAIR, ["the"]),
    Parameter("allowed_token_ids", Becomes.PAIR, [400, 401, 402, 403]),
    Parameter("skip_special_tokens", Becomes.PAIR, False),
    Parameter("spaces_between_special_tokens", Becomes.PAIR, False),
    Parameter("truncate_prompt_tokens", Becomes.PAIR, 20),
    Parameter("truncation_side", Becomes.PAIR, "left", {"truncate_prompt_tokens": 20}),
    Parameter("add_special_tokens", Becomes.PAIR, False),
    Parameter("structured_outputs", Becomes.PAIR, {"regex": "[0-9]{3}-[a-z]{2}"}),
    Parameter("prompt_logprobs", Becomes.WHOLE, 2),
    Parameter("use_beam_search", Becomes.WHOLE, True, {"n": 2}),
    Parameter("length_penalty", Becomes.WHOLE, 1.2, {"use_beam_search": True, "n": 2}),
    Parameter("return_token_ids", Becomes.PAIR, True),
    Parameter("return_tokens_as_token_ids", Becomes.PAIR, True),
    Parameter("cache_salt", Becomes.PAIR, "of-one-tenant", note="requests of other salts share no cached prefix"),
    Parameter("request_id", Becomes.PAIR, "mine", note="Baton's own id is the header `x-request-id`"),
    Parameter("priority", Becomes.PAIR, 1, note="order within the SLO class, less is sooner"),
    Parameter("stream_interval", Becomes.PAIR, 3, {"stream": True}),
    Parameter("vllm_xargs", Becomes.PAIR, {"anything": "else"}),
    Parameter("kv_transfer_params", _HANDOVER, {"do_remote_decode": True}, note="Baton sets it"),
    Parameter("ec_transfer_params", _HANDOVER, {"a": 1}, note="Baton sets it"),
    Parameter("no_such_parameter", Becomes.IGNORED, 1, note="any name that vLLM does not know"),
)
_OF_VLLM_CHAT: Final = (
    Parameter("echo", Becomes.WHOLE, True),
    Parameter("add_generation_prompt", Becomes.PAIR, False),
    Parameter("continue_final_message", Becomes.PAIR, True, {"add_generation_prompt": False}),
    Parameter("chat_template_kwargs", Becomes.PAIR, {"anything": 1}),
    Parameter("documents", Becomes.PAIR, [{"title": "a", "text": "b"}]),
)
CHAT: Final = (
    Parameter("messages", Becomes.PAIR, [{"role": "system", "content": PROMPT}, {"role": "user", "content": "Speak."}]),
    *_COMMON,
    Parameter("max_completion_tokens", Becomes.PAIR, 9),
    Parameter("logprobs", Becomes.PAIR, True),
    Parameter("top_logprobs", Becomes.PAIR, 3, {"logprobs": True}),
    Parameter("tools", Becomes.PAIR, [_TOOL], {"max_tokens": 40}),
    Parameter("tool_choice", Becomes.PAIR, "required", {"tools": [_TOOL], "max_tokens": 40}),
    Parameter("parallel_tool_calls", Becomes.PAIR, False, {"tools": [_TOOL], "max_tokens": 40}),
    Parameter("reasoning_effort", Becomes.PAIR, "low", note="for models that reason"),
    Parameter("store", Becomes.IGNORED, True),
    Parameter("metadata", Becomes.IGNORED, {"a": "b"}),
    Parameter("service_tier", Becomes.IGNORED, "auto"),
    Parameter("modalities", Becomes.IGNORED, ["text"]),
    *_OF_VLLM,
    *_OF_VLLM_CHAT,
)
COMPLETIONS: Final = (
    Parameter("prompt", Becomes.PAIR, list(range(400, 480)), note="text, or token ids"),
    Parameter("prompt (several)", Becomes.WHOLE, ["Now is the winter", "To be, or not"]),
    *_COMMON,
    Parameter("echo", Becomes.WHOLE, True),
    Parameter("logprobs", Becomes.PAIR, 3),
    Parameter("suffix", Becomes.REFUSED, "end"),
    Parameter("best_of", Becomes.WHOLE, 2, note="ignored by vLLM"),
    *_OF_VLLM,
)
BY_ROUTE: Final[Mapping[str, tuple[Parameter, ...]]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
}
BASES: Final[Mapping[str, Json]] = {"/v1/chat/completions": CHAT_BASE, "/v1/completions": COMPLETION_BASE}
_MARK: Final = "<!-- parameters of {} -->"


def table(route: str) -> Iterator[str]:
    """Write the table of a route: OpenAI's own parameters and those that vLLM adds, then those with a note."""
    yield "| Parameter | What becomes of it |"
    yield "|---|---|"
    plain = [p for p in BY_ROUTE[route] if not p.note]
    added = {p.name for p in (*_OF_VLLM, *(_OF_VLLM_CHAT if "chat" in route else ()))}
    for of_vllm in (False, True):
        for fate in Becomes:
            names = ", ".join(f"`{p.name}`" for p in plain if p.becomes is fate and (p.name in added) is of_vllm)
            if names:
                yield f"| {'vLLM adds: ' if of_vllm else ''}{names} | {fate} |"
    for parameter in BY_ROUTE[route]:
        if parameter.note:
            yield f"| `{parameter.name}` | {parameter.becomes}: {parameter.note} |"


def with_tables(text: str) -> str:
    """Put the tables into a page that has the marks for them."""
    for route in BY_ROUTE:
        mark = _MARK.format(route)
        made = "\n".join((mark, "", *table(route), "", ""))
        text = re.sub(re.escape(mark) + r"\n+(?:\|.*\n)*\n*", lambda _, made=made: made, text)
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
