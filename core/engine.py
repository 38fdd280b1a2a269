"""The seam between a worker and the engine inside it.

Owns the Protocol that engine/ implements and that prefill_workers/ and decode_workers/ call. Knows OpenAI requests
only as opaque HTTP calls: the engine's own OpenAI layer gives them meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from core.types import Fingerprint, LegFacts, WorkerState

# Where vLLM's engine core finds the tokens of a resumed request, among the extra arguments of its parameters.
RESUMED_TOKENS: Final = "baton_resumed_tokens"


@dataclass(frozen=True, slots=True)
class Resume:
    """The beginning of a stream that its client has already, from a worker that was lost."""

    token_ids: Sequence[int]
    group_sizes: Sequence[int]  # tokens that were rendered together, in order; empty: each by itself
    created: int = 0  # as the stream says of itself, Unix time

    def groups(self) -> Iterator[list[int]]:
        """Yield the tokens in the groups in which they were rendered."""
        start = 0
        for size in self.group_sizes or [1] * len(self.token_ids):
            yield list(self.token_ids[start : start + size])
            start += size


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One HTTP request for the engine's OpenAI layer; `path` may carry a query string."""

    request_id: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    nonce: str = ""  # the same wherever the request runs; ids that an engine makes up follow from it
    resume: Resume | None = None  # go on where another worker stopped


class ReplySink(Protocol):
    """Receives one HTTP reply as it is made; the calls return at once and are made from the event loop."""

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        """Take status and headers; called exactly once, before any body."""
        ...

    def body(self, data: bytes) -> None:
        """Take the next bytes of the body; never empty."""
        ...

    def facts(self, facts: LegFacts) -> None:
        """Take what was measured of the leg; called at most once, before the reply is complete."""
        ...

    def tokens(self, token_ids: Sequence[int]) -> None:
        """Take the output tokens that the next bytes of a stream are made of, as they were rendered together.

        Told of streams of one sequence, and not of the tokens that end it nor of those that a resumed call was given.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What is fixed once an engine is up."""

    model: str  # served model name
    max_model_len: int  # tokens
    num_kv_blocks: int
    kv_address: str  # host:port where the engine core receives KV
    fingerprint: Fingerprint


class Engine(Protocol):
    """One model replica behind its OpenAI layer."""

    @property
    def description(self) -> EngineDescription:
        """What is fixed once the engine is up."""
        ...

    async def serve(self, call: HttpCall, sink: ReplySink) -> None:
        """Answer one call into `sink`; return when the reply is complete.

        A resumed call is answered from the beginning: what its client has already is made again first.
        Cancelling the task aborts the request in the engine, and returns once its blocks are given up.
        Raises EngineFailed when the engine is dead, ResumeFailed when it cannot go on with such a request.
        """
        ...

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        """Tell the engine core that a hand-over will not come; the request waiting for it recomputes at once."""
        ...

    def state(self) -> WorkerState:
        """Report the load at the end of the latest step."""
        ...

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` from the event loop after each engine step that changed the state."""
        ...

    async def failed(self) -> str:
        """Wait until the engine is beyond repair and return why."""
        ...

    async def close(self) -> None:
        """Stop the engine and its processes; idempotent."""
        ...
