"""One request inside the simulated engine: what is computed of it and what is left.

Owns its progress and its reply. Must not know batching, blocks or time.
"""

from __future__ import annotations

import asyncio

from core.engine import ReplySink
from engine import simulated_openai as openai


class Sequence:
    """One request inside the engine."""

    __slots__ = ("_num_made", "_sink", "done", "generation", "num_blocks", "owed_tokens", "timer")

    def __init__(self, generation: openai.Generation, sink: ReplySink, num_blocks: int) -> None:
        self.generation = generation
        self.num_blocks = num_blocks  # for prompt and output, reserved at once
        self.owed_tokens = generation.num_prompt_tokens  # of the prompt, not yet computed
        self.timer: asyncio.TimerHandle | None = None  # while it waits for a hand-over
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sink = sink
        self._num_made = 0

    def stop_timer(self) -> None:
        """Stop what would end the wait for a hand-over."""
        if self.timer is not None:
            self.timer.cancel()

    def advance(self, num_tokens: int) -> None:
        """Compute `num_tokens` of the prompt, and an output token if the prompt is complete."""
        self.owed_tokens -= num_tokens
        if self.owed_tokens > 0 or self.done.done():
            return
        generation, index = self.generation, self._num_made
        self._num_made += 1
        is_last = self._num_made == generation.max_tokens
        if generation.stream:
            if index == 0:
                self._sink.start(200, openai.SSE_HEADERS)
            self._sink.body(openai.event(generation, index))
            if is_last:
                self._sink.body(openai.closing_events(generation))
        elif is_last:
            self._sink.start(200, openai.JSON_HEADERS)
            self._sink.body(openai.whole_body(generation))
        if is_last:
            self.done.set_result(None)
