"""The OpenAI surface of the simulated engine: requests read, replies rendered, in deterministic words.

Owns JSON shapes and the made-up text. Must not know time, blocks or steps. A token is a word; the word at a position
depends only on the first token of the prompt and on that position, so a prompt extended by its own output goes on
where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from core.engine import HttpCall, Resume
from core.errors import ResumeFailed

WORDS: Final = (
    *("the", "sea", "was", "calm", "and", "a", "small", "boat", "went", "out", "before", "dawn", "with", "two"),
    *("men", "who", "said", "little", "but", "knew", "every", "rock", "between", "here", "and", "north", "shore"),
    *("they", "came", "home", "late"),
)
_DEFAULT_MAX_TOKENS: Final = 16
JSON_HEADERS: Final = (("content-type", "application/json"),)
SSE_HEADERS: Final = (("content-type", "text/event-stream; charset=utf-8"),)


class BadCall(Exception):
    """A call that gets an OpenAI error for a reply."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def body(self) -> bytes:
        """Render the error as vLLM does."""
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.status}
        return json.dumps({"error": error}).encode()


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request asks for."""

    request_id: str
    model: str
    chat: bool
    stream: bool
    include_usage: bool
    include_ids: bool
    prompt: tuple[int, ...]  # token ids
    max_tokens: int
    receives_transfer: str  # id of the hand-over that brings the prompt's KV; empty: none
    sends_transfer: str  # id of the hand-over that takes it away; empty: none
    lease_s: float
    resume: Resume | None = None  # what its client has already

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def num_known_tokens(self) -> int:
        """Tokens to compute before the first new one: the prompt and what another engine made of the output."""
        return len(self.prompt) + (0 if self.resume is None else len(self.resume.token_ids))

    def token(self, index: int) -> int:
        """Give the id of the output token at `index`, an index into WORDS."""
        return (self.prompt[0] + (len(self.prompt) + index) * 7) % len(WORDS)


def parse_generation(call: HttpCall, *, chat: bool, model: str, max_model_len: int) -> Generation:
    """Read a completion or chat completion.

    Raises BadCall with the status and message the client gets, ResumeFailed for what cannot be gone on with.
    """
    body = _json_object(call.body)
    if call.resume is not None and body.get("seed") is not None:
        raise ResumeFailed("the simulated engine does not resume requests with a seed")
    if body.get("model", model) != model:
        raise BadCall(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
    prompt = _chat_tokens(body.get("messages")) if chat else _prompt_tokens(body.get("prompt"))
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or _DEFAULT_MAX_TOKENS
    if not isinstance(asked, int) or asked < 1:
        raise BadCall(400, "BadRequestError", f"max_tokens must be at least 1, got {asked}.")
    if len(prompt) + asked > max_model_len:
        wanted = f"{len(prompt)} prompt tokens and {asked} output tokens"
        raise BadCall(400, "BadRequestError", f"The context length is {max_model_len}; {wanted} were asked for.")
    options = body.get("stream_options")
    transfer = body.get("kv_transfer_params")
    ticket = transfer if isinstance(transfer, dict) else {}
    transfer_id = str(ticket.get("transfer_id", ""))
    return Generation(
        request_id=call.request_id,
        model=model,
        chat=chat,
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        include_ids=bool(body.get("return_token_ids")),
        prompt=prompt,
        max_tokens=asked,
        receives_transfer=transfer_id if ticket.get("do_remote_prefill") else "",
        sends_transfer=transfer_id if ticket.get("do_remote_decode") else "",
        lease_s=float(ticket.get("lease_s", 0.0)),
        resume=call.resume,
    )


def models_body(model: str, max_model_len: int) -> bytes:
    """Render the list of models."""
    entry = {"id": model, "object": "model", "owned_by": "baton", "max_model_len": max_model_len}
    return json.dumps({"object": "list", "data": [entry]}).encode()


def event(generation: Generation, index: int, tokens: Sequence[int] | None = None) -> bytes:
    """Render the server-sent event of the output token at `index`, or of these `tokens` that begin there."""
    if tokens is None:
        tokens = (generation.token(index),)
    last = index + len(tokens) == generation.max_tokens
    text = "".join(" " + WORDS[token] for token in tokens)
    choice: dict[str, object] = {"index": 0, "finish_reason": "length" if last else None, "logprobs": None}
    if generation.chat:
        choice["delta"] = {"role": "assistant", "content": text} if index == 0 else {"content": text}
    else:
        choice["text"] = text
    if generation.include_ids:
        choice["token_ids"] = list(tokens)
        choice["prompt_token_ids"] = list(generation.prompt) if index == 0 else None
    return _sse(_envelope(generation, [choice]))


def closing_events(generation: Generation) -> bytes:
    """Render what follows the last token of a stream."""
    done = b"data: [DONE]\n\n"
    if not generation.include_usage:
        return done
    return _sse(_envelope(generation, []) | {"usage": _usage(generation)}) + done


def whole_body(generation: Generation) -> bytes:
    """Render the reply of a request that does not stream."""
    tokens = [generation.token(index) for index in range(generation.max_tokens)]
    text = "".join(" " + WORDS[token] for token in tokens)
    choice: dict[str, object] = {"index": 0, "finish_reason": "length", "logprobs": None}
    if generation.chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    if generation.include_ids:
        choice["token_ids"] = tokens
        choice["prompt_token_ids"] = list(generation.prompt)
    return json.dumps(_envelope(generation, [choice]) | {"usage": _usage(generation)}).encode()


def _envelope(generation: Generation, choices: list[dict[str, object]]) -> dict[str, object]:
    kind = ("chat.completion" if generation.chat else "text_completion") + (
        ".chunk" if generation.chat and generation.stream else ""
    )
    prefix = "chatcmpl" if generation.chat else "cmpl"
    return {
        "id": f"{prefix}-{generation.request_id}",
        "object": kind,
        "created": 0,  # no clock: equal requests get equal replies
        "model": generation.model,
        "choices": choices,
    }


def _usage(generation: Generation) -> dict[str, int]:
    prompt, output = generation.num_prompt_tokens, generation.max_tokens
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _sse(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _json_object(data: bytes) -> dict[str, object]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise BadCall(400, "BadRequestError", f"The body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadCall(400, "BadRequestError", "The body is not a JSON object.")
    return body


def _prompt_tokens(prompt: object) -> tuple[int, ...]:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _text_tokens(prompt)
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return tuple(prompt)
    raise BadCall(400, "BadRequestError", "prompt must be a text or a list of token ids.")


def _chat_tokens(messages: object) -> tuple[int, ...]:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadCall(400, "BadRequestError", "messages must be a list of messages.")
    return _text_tokens(" ".join(str(message.get("content") or "") for message in messages))


def _text_tokens(text: str) -> tuple[int, ...]:
    return tuple(_token_of(word) for word in text.split()) or (0,)


def _token_of(word: str) -> int:
    return WORDS.index(word) if word in WORDS else len(WORDS) + crc32(word.encode()) % 32_000
