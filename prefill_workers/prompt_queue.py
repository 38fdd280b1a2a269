"""The prompts that wait for their turn on one engine, by slack.

Owns how much is handed over to the engine ahead of time: what the engine has it computes in the order in which it came,
so no more than keeps it busy. Must not know calls, nor what an engine does with a prompt. From one event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from core.errors import Overloaded
from core.policy.slack_queue import QueueRules, SlackQueue, Waiting
from core.types import LegOrder

# In steps of the engine. With two it has its next step's prompts when a step ends. A long prompt counts for less than
# all of it: beside it short ones still go over, and the next long one when this one has half a step to go.
_BUDGET_STEPS: Final = 2.0
_MOST_COUNTED_STEPS: Final = 1.5
_LONG_STEPS: Final = 0.5  # a prompt that fills this much of a step is a long one
_LANE_STEPS: Final = 2.0

_Turn = Waiting[asyncio.Future[None]]


class PromptQueue:
    """Gives each prompt its turn; those that had it and are not done are ahead."""

    def __init__(self, *, step_tokens: int, max_waiting: int) -> None:
        """Take how many prompt tokens one step of the engine can compute, and how many prompts may wait."""
        self._budget_tokens = int(_BUDGET_STEPS * step_tokens)
        self._most_counted_tokens = int(_MOST_COUNTED_STEPS * step_tokens)
        self._queue: SlackQueue[asyncio.Future[None]] = SlackQueue(
            QueueRules(
                max_items=max_waiting,
                long_from_tokens=max(1, int(_LONG_STEPS * step_tokens)),
                lane_tokens=int(_LANE_STEPS * step_tokens),
                most_counted_tokens=self._most_counted_tokens,
            )
        )
        # Tokens that the engine has not computed, as far as it told, of all and only the prompts that are ahead, in the
        # order of their turns.
        self._ahead: dict[_Turn, int] = {}

    @property
    def num_waiting(self) -> int:
        """Count the prompts that have not had their turn."""
        return len(self._queue)

    @property
    def num_ahead(self) -> int:
        """Count the prompts that have had it and are not done."""
        return len(self._ahead)

    @asynccontextmanager
    async def turn(self, order: LegOrder) -> AsyncIterator[None]:
        """Wait for the turn of one prompt; it is done when the block ends. Raises Overloaded if too many wait.

        Cancelling frees its place at once, whether it waits or is ahead.
        """
        loop = asyncio.get_running_loop()
        slack_s = order.slack_s if math.isfinite(order.slack_s) else 0.0
        turn = Waiting(loop.time() + slack_s, max(1, order.prompt_tokens), loop.create_future())
        if self.num_waiting >= self._queue.rules.max_items:
            raise Overloaded(f"{self.num_waiting} prompts wait")
        self._queue.push(turn, loop.time())
        try:
            self._hand_over()
            await turn.payload
            yield
        finally:
            if not self._queue.remove(turn):
                del self._ahead[turn]
            self._hand_over()

    def computed(self, num_tokens: int) -> None:
        """Note prompt tokens of a step that has ended; they are of the prompts whose turn came first."""
        for turn, left_tokens in self._ahead.items():
            if num_tokens <= 0:
                break
            self._ahead[turn] = max(0, left_tokens - num_tokens)
            num_tokens -= left_tokens
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._queue:
            return
        counted = sum(min(tokens, self._most_counted_tokens) for tokens in self._ahead.values())
        now_s = asyncio.get_running_loop().time()
        for turn in self._queue.take(self._budget_tokens - counted, now_s, at_least=0 if self._ahead else 1):
            self._ahead[turn] = turn.prompt_tokens
            if not turn.payload.done():  # else its task is being cancelled and gives the place back
                turn.payload.set_result(None)
