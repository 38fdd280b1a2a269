"""The OpenAI and vLLM routes that workers answer, as one table.

Owns which paths are relayed and how their bodies are read. Dispatch and /openapi.json both come from it. Must not know
workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.body import BodyFacts, TokensOf, chat_facts, completion_facts, no_facts, whole_facts


@dataclass(frozen=True, slots=True)
class Operation:
    """One relayed route."""

    method: str
    path: str
    summary: str
    read: Callable[[bytes, str, TokensOf], BodyFacts]
    required: tuple[str, ...] = ()  # fields its body must have, for the schema
    opening_events: int = 0  # of a stream, before the event of the first token
    generates: bool = True  # produces tokens: has an SLO, is measured and logged
    resumes: bool = False  # a stream of it can go on at another worker: workers make the same bytes of the same tokens


_OPERATIONS: Final = (
    Operation("POST", "/v1/completions", "Complete a prompt", completion_facts, ("prompt",), resumes=True),
    Operation("POST", "/v1/chat/completions", "Answer a conversation", chat_facts, ("messages",), 1, resumes=True),
    Operation("POST", "/v1/responses", "Create a response", whole_facts, ("input",)),
    Operation("POST", "/v1/messages", "Answer a conversation, Anthropic form", whole_facts, ("messages",)),
    Operation("GET", "/v1/models", "List the models", no_facts, generates=False),
    Operation("POST", "/tokenize", "Turn text into token ids", no_facts, generates=False),
    Operation("POST", "/detokenize", "Turn token ids into text", no_facts, ("tokens",), generates=False),
)

OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType({o.path: o for o in _OPERATIONS})
WORKER_METRICS: Final = re.compile(r"/workers/([^/]+)/metrics\Z")
