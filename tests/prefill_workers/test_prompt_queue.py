"""Prompts get their turn by slack, as the engine has need of them, and none is lost.

Property: whatever is cancelled and whenever, each prompt that is not cancelled gets its turn, and at the end nothing
waits or is ahead.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Overloaded
from core.types import LegOrder
from prefill_workers.prompt_queue import PromptQueue

STEP_TOKENS = 100


class Site:
    """A queue, and the prompts that had their turn, each done when told."""

    def __init__(self, max_waiting: int = 100) -> None:
        self.queue = PromptQueue(step_tokens=STEP_TOKENS, max_waiting=max_waiting)
        self.turns: list[str] = []
        self.done: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def submit(self, name: str, slack_s: float, tokens: int) -> None:
        self.done[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, LegOrder(slack_s, tokens)))

    async def _run(self, name: str, order: LegOrder) -> None:
        async with self.queue.turn(order):
            self.turns.append(name)
            await self.done[name].wait()

    async def end(self, name: str) -> list[str]:
        """Let a prompt be done; return whose turn it was since the last call."""
        self.done[name].set()
        await self.tasks[name]
        return await self.new()

    async def cancel(self, name: str) -> list[str]:
        self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name]])
        return await self.new()

    async def new(self) -> list[str]:
        for _ in range(4):
            await asyncio.sleep(0)
        turns, self.turns = self.turns, []
        return turns


async def test_the_engine_gets_two_steps_and_the_rest_by_slack() -> None:
    site = Site()
    for number, slack_s in enumerate((50.0, 40.0, 30.0, 20.0, 10.0)):
        site.submit(str(number), slack_s, 49)
    assert await site.new() == ["0", "1", "2", "3"]  # each as it came, for there was room
    for number, slack_s in ((5, 15.0), (6, 3.0), (7, -1.0)):
        site.submit(str(number), slack_s, 49)
    assert await site.new() == []
    assert await site.end("1") == ["6"]
    assert await site.end("0") == ["7"]  # too late by now, but those with much slack can wait
    assert (site.queue.num_waiting, site.queue.num_ahead) == (2, 4)
    assert await site.end("6") == ["4"]
    assert await site.end("2") == ["5"]


async def test_a_prompt_of_any_length_has_its_turn() -> None:
    site = Site()
    site.submit("a", 1.0, 10_000)
    site.submit("b", 2.0, 10_000)
    assert await site.new() == ["a"]
    assert await site.end("a") == ["b"]


async def test_short_prompts_go_over_beside_a_long_one() -> None:
    site = Site()
    site.submit("long", 1.0, 1000)
    site.submit("next", 1.0, 1000)
    assert await site.new() == ["long"]
    for name in ("s", "t", "u"):
        site.submit(name, 10.0, 25)
    assert await site.new() == ["s", "t"]
    assert await site.end("s") == ["u"]


async def test_steps_of_the_engine_make_room() -> None:
    site = Site()
    for name in ("a", "b", "c"):
        site.submit(name, 1.0, 300)
    assert await site.new() == ["a"]
    for expected in ([], [], ["b"], [], []):
        site.queue.computed(STEP_TOKENS - 10)
        assert await site.new() == expected
    site.queue.computed(STEP_TOKENS)
    assert await site.new() == ["c"]


async def test_a_cancelled_prompt_frees_its_place() -> None:
    site = Site()
    for name, tokens in (("a", 150), ("b", 150), ("c", 40), ("d", 150)):
        site.submit(name, 1.0, tokens)
    assert await site.new() == ["a", "c"]
    assert await site.cancel("b") == []
    assert await site.cancel("a") == ["d"]
    assert (site.queue.num_waiting, site.queue.num_ahead) == (0, 2)


async def test_a_prompt_cancelled_in_its_turn_gives_it_back() -> None:
    site, go_on = Site(), asyncio.Event()

    async def first() -> None:
        async with site.queue.turn(LegOrder(1.0, 500)):
            await go_on.wait()
        site.tasks["b"].cancel()  # it was given its turn and has not run

    site.tasks["a"] = asyncio.create_task(first())
    site.submit("b", 1.0, 500)
    site.submit("c", 2.0, 500)
    assert await site.new() == []
    go_on.set()
    assert await site.new() == ["c"]
    assert site.tasks["b"].cancelled()


async def test_too_many_that_wait_are_refused() -> None:
    site = Site(max_waiting=1)
    for name in ("a", "b", "c"):
        site.submit(name, 1.0, 500)
    assert await site.new() == ["a"]
    with pytest.raises(Overloaded):
        await site.tasks["c"]
    assert await site.end("a") == ["b"]


async def test_any_slack_is_taken() -> None:
    site = Site()
    for name, slack_s in (("a", float("nan")), ("b", float("inf")), ("c", float("-inf")), ("d", -1e300)):
        site.submit(name, slack_s, 0)
    assert await site.new() == ["a", "b", "c", "d"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 400)), min_size=1, max_size=20),
    st.lists(st.tuples(st.sampled_from(("end", "cancel", "step", "pass")), st.integers(0, 19)), max_size=60),
)
def test_no_prompt_is_lost(prompts: list[tuple[int, int]], script: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        site = Site()
        cancelled = set()
        for number, (slack_s, tokens) in enumerate(prompts):
            site.submit(str(number), slack_s, tokens)
        for action, number in script:
            name = str(number)
            if action == "step":
                site.queue.computed(10 * number)
            elif action == "pass":
                await asyncio.sleep(0)
            elif name in site.tasks and action == "end":
                site.done[name].set()
            elif name in site.tasks:
                site.tasks[name].cancel()
                cancelled.add(name)
        for event in site.done.values():
            event.set()
        async with asyncio.timeout(10):
            await asyncio.wait(site.tasks.values())
        assert {name for name, task in site.tasks.items() if task.cancelled()} <= cancelled
        assert set(site.turns) >= set(site.tasks) - cancelled
        assert len(set(site.turns)) == len(site.turns)
        assert (site.queue.num_waiting, site.queue.num_ahead) == (0, 0)

    asyncio.run(scenario())
