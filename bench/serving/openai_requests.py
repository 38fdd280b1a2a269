"""Requests of the OpenAI API, made from a dataset for one endpoint; and what the endpoint says of its model.

Owns bodies and paths. Must not know when they are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from bench.serving.connection import ConnectionPool
from bench.serving.datasets import Item, Source
from bench.serving.document import ask
from bench.serving.endpoint import SLO_CLASS, Endpoint
from bench.serving.load_run import Prepared
from bench.serving.prompt_text import CountTokens
from core.errors import BatonError, ConfigError
from sim.workload import Floats

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
EXPLAIN: Final = {"x-baton-explain": "1"}


@dataclass(frozen=True, slots=True)
class Api:
    """How requests are put."""

    model: str
    is_chat: bool = False
    temperature: float | None = 0.0
    ignore_eos: bool = True
    extra_body: Mapping[str, object] = field(default_factory=dict)
    explains: bool = False  # ask Baton to add what it predicted

    @property
    def path(self) -> str:
        """The route."""
        return CHAT if self.is_chat else COMPLETIONS

    def body(self, prompt: str | list[dict[str, object]], max_tokens: int) -> dict[str, object]:
        """Make the body of a streamed request."""
        body: dict[str, object] = {"model": self.model}
        if self.is_chat:
            body["messages"] = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            body["max_completion_tokens"] = max_tokens
        else:
            body["prompt"] = prompt if isinstance(prompt, str) else _flat(prompt)
            body["max_tokens"] = max_tokens
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | dict(self.extra_body)


class ApiRequests:
    """Implements bench.serving.load_run.Requests."""

    def __init__(self, source: Source, endpoint: Endpoint, api: Api) -> None:
        self._source = source
        self._api = api
        self._head = endpoint.head("POST", api.path)
        if api.explains:
            self._head += "".join(f"{name}: {value}\r\n" for name, value in EXPLAIN.items()).encode()

    def __len__(self) -> int:
        """Count the requests."""
        return len(self._source)

    @property
    def arrived_s(self) -> Floats | None:
        """Times of the dataset."""
        return self._source.arrived_s

    def request(self, index: int) -> Prepared:
        """Make one."""
        item = self._source.item(index)
        return Prepared(self._bytes(item), item.prompt_tokens, item.slo_class)

    def _bytes(self, item: Item) -> bytes:
        body = orjson.dumps(self._api.body(item.prompt, item.output_tokens))
        named = f"{SLO_CLASS}: {item.slo_class}\r\n".encode("latin-1") if item.slo_class else b""
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (self._head, named, len(body), body)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What /v1/models says of the first model."""

    name: str
    max_model_len: int | None


async def served_model(pool: ConnectionPool, endpoint: Endpoint) -> ServedModel:
    """Ask for the first model. Raises ConfigError when there is none, BatonError when nothing answers."""
    found = await ask(pool, endpoint, "/v1/models")
    models = found.json().get("data")
    if found.status != 200 or not isinstance(models, list) or not models:
        raise ConfigError(f"{endpoint.url}/v1/models answered {found.status}: {found.body[:200].decode('latin-1')!r}")
    longest = models[0].get("max_model_len")
    return ServedModel(str(models[0]["id"]), longest if isinstance(longest, int) else None)


def local_counter(folder: Path) -> CountTokens:
    """Count by the files of a tokenizer. Raises ConfigError when they, or the library that reads them, are missing."""
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
    except ImportError as exc:
        raise ConfigError("--tokenizer needs the package tokenizers, which comes with vLLM; install it") from exc
    except Exception as exc:  # the library raises bare Exception for any file it cannot read
        raise ConfigError(f"--tokenizer: {file} cannot be used: {exc}") from exc

    async def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    return count


def server_counter(pool: ConnectionPool, endpoint: Endpoint, api: Api) -> CountTokens:
    """Count by the server: its /tokenize where it has one (vLLM, Baton), else the usage of a one-token completion."""
    has_tokenize = not api.is_chat  # what a template adds is in the usage alone

    async def count(text: str) -> int:
        nonlocal has_tokenize
        if has_tokenize:
            answer = await ask(pool, endpoint, "/tokenize", {"model": api.model, "prompt": text})
            counted = answer.json().get("count")
            if answer.status == 200 and isinstance(counted, int):
                return counted
            has_tokenize = False
        return await _counted_by_usage(pool, endpoint, api, text)

    return count


async def _counted_by_usage(pool: ConnectionPool, endpoint: Endpoint, api: Api, text: str) -> int:
    body = api.body(text, 1)
    del body["stream"], body["stream_options"]
    answer = await ask(pool, endpoint, api.path, body)
    usage = answer.json().get("usage")
    if answer.status != 200 or not isinstance(usage, dict):
        said = answer.body[:300].decode(errors="replace")
        raise BatonError(f"{endpoint.url}{api.path} answered a probe with {answer.status}: {said}")
    return int(usage.get("prompt_tokens", 0))


def _flat(messages: list[dict[str, object]]) -> str:
    return "\n".join(str(message.get("content", "")) for message in messages)
