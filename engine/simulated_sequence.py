"""One request inside the simulated engine: what is computed of it and what is left.

Owns its progress, its reply and what is measured of it. Must not know batching, blocks or clocks: it is told the time.
"""

from __future__ import annotations

import asyncio

from core.engine import ReplySink
from core.types import LegFacts
from engine import simulated_openai as openai


class Sequence:
    """One request inside the engine."""

    __slots__ = (
        *("_arrived_s", "_began_s", "_first_token_s", "_num_made", "_sink"),
        *("cached_tokens", "done", "generation", "num_blocks", "owed_tokens", "received_tokens", "timer"),
    )

    def __init__(self, generation: openai.Generation, sink: ReplySink, num_blocks: int, now_s: float) -> None:
        self.generation = generation
        self.num_blocks = num_blocks  # for prompt and output, reserved at once
        self.owed_tokens = generation.num_known_tokens  # of the prompt and what is known of the output, not computed
        self.cached_tokens = 0  # of the prompt, found in the engine's prefix cache
        self.received_tokens = 0  # of the prompt, by a hand-over
        self.timer: asyncio.TimerHandle | None = None  # while it waits for a hand-over
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sink = sink
        self._num_made = 0
        self._arrived_s = now_s
        self._began_s: float | None = None  # begin of its first step
        self._first_token_s: float | None = None

    def stop_timer(self) -> None:
        """Stop what would end the wait for a hand-over."""
        if self.timer is not None:
            self.timer.cancel()

    def reuse(self, cached_tokens: int) -> None:
        """Take the first tokens of the prompt from the prefix cache; call it before any are computed."""
        self.cached_tokens = cached_tokens
        self.owed_tokens -= cached_tokens

    def receive(self) -> None:
        """Take the prompt's KV from a hand-over; what is left is its last token, which gives the first output token."""
        self.received_tokens = self.owed_tokens
        self.owed_tokens = 1

    def facts(self) -> LegFacts:
        """Return what was measured; call it once there is a first token."""
        assert self._began_s is not None
        assert self._first_token_s is not None
        return LegFacts(
            prompt_tokens=self.generation.num_prompt_tokens,
            cached_tokens=self.cached_tokens,
            received_tokens=self.received_tokens,
            queued_s=self._began_s - self._arrived_s,
            prefill_s=self._first_token_s - self._began_s,
        )

    def advance(self, num_tokens: int, *, began_s: float, ended_s: float) -> bool:
        """Compute `num_tokens` of the prompt in one step, and an output token if the prompt is complete.

        Returns whether there was an output token.
        """
        self.owed_tokens -= num_tokens
        if self._began_s is None:
            self._began_s = began_s
        if self.owed_tokens > 0 or self.done.done():
            return False
        if self._first_token_s is None:
            self._first_token_s = ended_s
        generation = self.generation
        if not self._num_made:
            self._begin_stream()
        index = self._num_made
        self._num_made += 1
        is_last = self._num_made == generation.max_tokens
        if generation.stream:
            if not is_last:
                self._sink.tokens((generation.token(index),))
            self._sink.body(openai.event(generation, index))
            if is_last:
                self._sink.body(openai.closing_events(generation))
        elif is_last:
            self._sink.start(200, openai.JSON_HEADERS)
            self._sink.body(openai.whole_body(generation))
        if is_last:
            self.done.set_result(None)
        return True

    def _begin_stream(self) -> None:
        """Begin the reply of a stream, with what its client has of it already."""
        generation = self.generation
        if not generation.stream:
            return
        self._sink.start(200, openai.SSE_HEADERS)
        if generation.resume is not None:
            for tokens in generation.resume.groups():
                self._sink.body(openai.event(generation, self._num_made, tokens))
                self._num_made += len(tokens)
