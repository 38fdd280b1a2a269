"""What the router reads out of a request body, in one pass of orjson.

Owns the reading of exactly those fields that decide the route. Whether a value is valid is left to the worker's OpenAI
layer, so that its refusals are those of one engine; what looks odd here goes to one worker whole. Must not change a
byte of the body, and must not tokenise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import orjson

from core.errors import InvalidRequest, PayloadTooLarge
from core.policy.prefix_index import BYTES_PER_TOKEN
from router.prompt_pieces import NO_PROMPT, PromptPieces, chat_pieces, completion_pieces
from router.slo_headers import priority_in

Json = dict[str, object]
TokensOf = Callable[[int], int]  # how many tokens a text of so many bytes has
# What costs time to parse is not bytes but lists, objects and keys: 16 MB of `[],` stop the router for 1.4 s and take
# 500 MiB, as many of plain text 35 ms. A body below the first bound cannot hold enough of them to matter (20 ms).
_COUNTED_FROM_BYTES: Final = 256 << 10
MAX_PARTS: Final = 1 << 18

# The worker sets these itself; from a client they would name somebody else's hand-over.
RESERVED_FIELDS: Final = ("kv_transfer_params", "ec_transfer_params")


def by_bytes(num_bytes: int) -> int:
    """Estimate the tokens of a text before anything was learnt of the model."""
    return num_bytes // BYTES_PER_TOKEN


class BodyFacts(NamedTuple):
    """What routing and measuring need to know of a body."""

    prompt_tokens: int  # estimate, unless the prompt is token ids
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False  # one event more at the end of the stream, without a token
    whole_only: str | None = None  # why handed-over KV cannot serve it
    priority: int = 0  # within its class, less is sooner
    prompt: PromptPieces = NO_PROMPT
    logprobs: bool = False  # its events carry log probabilities


def read_object(body: bytes) -> Json:
    """Parse a body that must be a JSON object.

    Raises InvalidRequest; PayloadTooLarge for one that would take too long to parse.
    """
    if len(body) > _COUNTED_FROM_BYTES and body.count(b"[") + body.count(b"{") + body.count(b'":') > MAX_PARTS:
        raise PayloadTooLarge(f"the body holds more than {MAX_PARTS} lists, objects and keys")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(parsed, dict):
        raise InvalidRequest("the body must be a JSON object")
    return parsed


def completion_facts(body: bytes, tenant: str = "", tokens_of: TokensOf = by_bytes) -> BodyFacts:
    """Read a body of POST /v1/completions.

    Raises InvalidRequest.
    """
    fields = read_object(body)
    max_tokens = _common(fields, "max_tokens")
    prompt = fields.get("prompt")
    is_ids = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
    whole_only = _whole_only(fields)
    if whole_only is None and isinstance(prompt, list) and len(prompt) > 1 and not is_ids:
        whole_only = "several prompts"
    if whole_only is None and fields.get("prompt_embeds") is not None:
        whole_only = "prompt_embeds"
    if whole_only is None and fields.get("echo"):
        whole_only = "echo"
    return _facts(fields, _counted(completion_pieces(fields, tenant), tokens_of), max_tokens, whole_only)


def chat_facts(body: bytes, tenant: str = "", tokens_of: TokensOf = by_bytes) -> BodyFacts:
    """Read a body of POST /v1/chat/completions.

    Raises InvalidRequest.
    """
    fields = read_object(body)
    max_tokens = _common(fields, "max_tokens", "max_completion_tokens")
    messages = fields.get("messages")
    whole_only = _whole_only(fields)
    if whole_only is None and isinstance(messages, list) and _has_media(messages):
        whole_only = "multimodal content"
    if whole_only is None and fields.get("echo"):  # vLLM takes it as a wish for log probabilities of the prompt
        whole_only = "echo"
    return _facts(fields, _counted(chat_pieces(fields, tenant), tokens_of), max_tokens, whole_only)


def whole_facts(body: bytes, tenant: str = "", tokens_of: TokensOf = by_bytes) -> BodyFacts:
    """Read the body of any other route that generates; it runs whole on one worker.

    Raises InvalidRequest.
    """
    fields = read_object(body)
    _common(fields)
    return _facts(fields, (tokens_of(len(body)), NO_PROMPT), None, "route runs on one worker")


def no_facts(body: bytes, tenant: str = "", tokens_of: TokensOf = by_bytes) -> BodyFacts:
    """Read nothing; the worker judges the body alone."""
    return BodyFacts(tokens_of(len(body)), whole_only="route runs on one worker")


def _counted(prompt: PromptPieces, tokens_of: TokensOf) -> tuple[int, PromptPieces]:
    return (tokens_of(prompt.num_bytes) if prompt.num_tokens is None else prompt.num_tokens), prompt


def _facts(
    fields: Json, counted: tuple[int, PromptPieces], max_tokens: int | None, whole_only: str | None
) -> BodyFacts:
    """Put together what every generating route reads alike."""
    tokens, prompt = counted
    stream, usage = bool(fields.get("stream")), _includes_usage(fields)
    logprobs = fields.get("logprobs") not in (None, False)  # 0 asks for those of the tokens themselves
    priority = priority_in(fields.get("priority"))
    return BodyFacts(tokens, max_tokens, stream, usage, whole_only, priority, prompt, logprobs)


def _common(fields: Json, *limits: str) -> int | None:
    """Check what every generating route shares; return the last limit on output tokens that is set."""
    for name in RESERVED_FIELDS:
        if fields.get(name) is not None:
            raise InvalidRequest(f"{name} is set by Baton and must not be sent", param=name)
    extra = fields.get("vllm_xargs")
    if isinstance(extra, dict) and any(name in extra for name in RESERVED_FIELDS):
        raise InvalidRequest("vllm_xargs must not hold transfer parameters", param="vllm_xargs")
    found = None
    for name in limits:
        value = fields.get(name)
        found = value if isinstance(value, int) and value > 0 else found
    return found


def _whole_only(fields: Json) -> str | None:
    """Name what keeps a request off handed-over KV, whatever its prompt."""
    for name in ("n", "best_of"):
        if fields.get(name) not in (None, 1):  # "2" too: the worker may read it as a number
            return f"{name}>1"
    if fields.get("use_beam_search"):
        return "use_beam_search"
    # The engine ignores external KV when it must return logprobs of the prompt, even for 0 alternatives.
    if fields.get("prompt_logprobs") is not None:
        return "prompt_logprobs"
    return None


def _includes_usage(fields: Json) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _has_media(messages: list[object]) -> bool:
    """Tell whether any part of any message is not text."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and any(
            isinstance(part, dict) and part.get("type", "text") not in ("text", "refusal", "thinking")
            for part in content
        ):
            return True
    return False
