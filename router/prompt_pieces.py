"""What the router makes of a prompt without tokenising it: hashes of its beginnings, and how many tokens it may have.

Owns how a parsed body is laid out as text, cut and hashed, so that equal beginnings of prompts give equal pieces and
tenants never share any. Must not know workers, nor judge a body: what is odd gives fewer pieces, never an error.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple

import orjson
import xxhash

from core.policy.prefix_index import BYTES_PER_TOKEN, PIECE_ENDS

Json = dict[str, object]

_CUTS: Final = tuple(BYTES_PER_TOKEN * end for end in PIECE_ENDS)
# Fields that lay the prompt out anew from its beginning (vLLM 0.32, ChatCompletionRequest and CompletionRequest).
_LAYOUT_FIELDS: Final = frozenset(
    {"chat_template", "chat_template_kwargs", "documents", "add_special_tokens", "prompt_embeds"}
)
_ROLE, _CONTENT, _TEXT_KIND, _IDS_KIND = "\x01", "\x02", "text", "ids"
_TEXT_PARTS: Final = frozenset({"text", "refusal", "thinking", "input_text"})
_LEAST_BYTES_PER_TOKEN, _MOST_BYTES_PER_TOKEN = 0.25, 16.0
_PRIOR_BYTES: Final = 8192  # of a token estimate: how much text the default ratio stands for
_MEMORY_BYTES: Final = 1 << 20  # text after which what was learnt counts for half


class PromptPieces(NamedTuple):
    """The beginnings of one prompt, and its length."""

    pieces: tuple[int, ...] = ()  # each hash stands for the whole prompt up to the end of its piece
    num_bytes: int = 0  # of its text, without the JSON around it; BYTES_PER_TOKEN for each token id
    num_tokens: int | None = None  # exact, of a prompt of token ids


NO_PROMPT: Final = PromptPieces()


class TokenEstimate:
    """How many tokens texts of one model have, learnt from what its workers count."""

    def __init__(self, bytes_per_token: float = BYTES_PER_TOKEN) -> None:
        """Take what is assumed until enough was seen."""
        self._bytes = float(_PRIOR_BYTES)
        self._tokens = _PRIOR_BYTES / bytes_per_token

    @property
    def bytes_per_token(self) -> float:
        """What is assumed by now."""
        return self._bytes / self._tokens

    def observe(self, num_bytes: int, tokens: int) -> None:
        """Learn from a prompt whose tokens a worker counted; one count moves the estimate a little only."""
        if num_bytes <= 0 or tokens <= 0:
            return
        kept = 0.5 ** (min(num_bytes, _MEMORY_BYTES) / _MEMORY_BYTES)
        weight = min(1.0, _PRIOR_BYTES / num_bytes)  # no prompt counts for more than the prior, however long
        bytes_per_token = min(max(num_bytes / tokens, _LEAST_BYTES_PER_TOKEN), _MOST_BYTES_PER_TOKEN)
        self._bytes = kept * self._bytes + weight * num_bytes
        self._tokens = kept * self._tokens + weight * num_bytes / bytes_per_token

    def tokens(self, num_bytes: int) -> int:
        """Estimate the tokens of a text; at least one."""
        return max(1, round(num_bytes * self._tokens / self._bytes))


def completion_pieces(fields: Json, tenant: str) -> PromptPieces:
    """Cut the prompt of a parsed body of POST /v1/completions; several prompts have a length and no pieces."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        data = prompt.encode("utf-8", "surrogatepass")
        return PromptPieces(_cut(data, _seed(fields, tenant, _TEXT_KIND)), len(data))
    if not isinstance(prompt, list):
        return PromptPieces()
    if prompt and isinstance(prompt[0], int):
        return _of_ids(prompt, _seed(fields, tenant, _IDS_KIND))
    return PromptPieces(num_bytes=sum(map(_prompt_bytes, prompt)))


def chat_pieces(fields: Json, tenant: str) -> PromptPieces:
    """Cut the prompt of a parsed body of POST /v1/chat/completions: its tools, then its messages.

    What comes after a part that is not text has a length and no pieces: how many tokens the part takes is not known.
    """
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return PromptPieces()
    texts: list[str] = []
    if tools := fields.get("tools"):
        texts.append(_json(tools))
    end_of_text = None
    for message in messages:
        if isinstance(message, dict) and len(message) == 2 and isinstance(message.get("content"), str):
            texts += (_ROLE, _text(message.get("role")), _CONTENT, message["content"])  # as nearly all are
        elif _lay_out(message, texts) and end_of_text is None:
            end_of_text = len(texts)
    data = "".join(texts).encode("utf-8", "surrogatepass")
    head = data if end_of_text is None else "".join(texts[:end_of_text]).encode("utf-8", "surrogatepass")
    return PromptPieces(_cut(head, _seed(fields, tenant, _TEXT_KIND)), len(data))


def _seed(fields: Json, tenant: str, kind: str) -> int:
    """Hash what keeps prompts of equal text apart: tenant, model or adapter, cache_salt, and another layout."""
    model, salt = fields.get("model"), fields.get("cache_salt")
    if isinstance(model, str) and salt is None and _LAYOUT_FIELDS.isdisjoint(fields):
        return _plain_seed(kind, tenant, model)
    salt = f"{kind}{tenant!r}{_quoted(model)}{_quoted(salt)}"
    if not _LAYOUT_FIELDS.isdisjoint(fields):
        salt += _json([(name, fields[name]) for name in sorted(_LAYOUT_FIELDS) if fields.get(name) is not None])
    seed: int = xxhash.xxh3_64_intdigest(salt.encode("utf-8", "surrogatepass"))
    return seed


@lru_cache(maxsize=1024)
def _plain_seed(kind: str, tenant: str, model: str) -> int:
    """Hash the common case, of which there are few."""
    seed: int = xxhash.xxh3_64_intdigest(f"{kind}{tenant!r}{model!r}None".encode("utf-8", "surrogatepass"))
    return seed


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _quoted(value: object) -> str:
    return repr(value) if value is None or isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    """Lay out what is no text; what is nested too deep to be written is left to the worker, which refuses it."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return ""


def _cut(data: bytes, seed: int) -> tuple[int, ...]:
    """Chain the hashes of all whole pieces of `data`."""
    view, digest = memoryview(data), xxhash.xxh3_64_intdigest
    pieces: list[int] = []
    start, size = 0, len(data)
    for end in _CUTS:
        if end > size:
            break
        seed = digest(view[start:end], seed)
        pieces.append(seed)
        start = end
    return tuple(pieces)


def _of_ids(ids: list[object], seed: int) -> PromptPieces:
    size = BYTES_PER_TOKEN * len(ids)
    try:
        data = struct.pack(f"{len(ids)}I", *ids)
    except struct.error:  # no token id: the worker refuses it
        return PromptPieces(num_bytes=size, num_tokens=len(ids))
    return PromptPieces(_cut(data, seed), size, len(ids))


def _prompt_bytes(prompt: object) -> int:
    if isinstance(prompt, str):
        return len(prompt.encode("utf-8", "surrogatepass"))
    return BYTES_PER_TOKEN * len(prompt) if isinstance(prompt, list) else 0


def _lay_out(message: object, texts: list[str]) -> bool:
    """Append the texts of one message, up to a part that is none; return whether there was one."""
    if not isinstance(message, dict):
        return True
    content = message.get("content")
    texts += (_ROLE, _text(message.get("role")), _CONTENT)
    if len(message) > (2 if "content" in message else 1):
        rest = {name: value for name, value in message.items() if name not in ("role", "content")}
        texts.append(_json(rest))
    if isinstance(content, str):
        texts.append(content)
    elif isinstance(content, list):
        return _lay_out_parts(content, texts)
    return False


def _lay_out_parts(parts: list[object], texts: list[str]) -> bool:
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict) or part.get("type", "text") not in _TEXT_PARTS:
            return True
        texts += (value for name, value in part.items() if name != "type" and isinstance(value, str))
    return False
