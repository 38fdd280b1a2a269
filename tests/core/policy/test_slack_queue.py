"""The slack queue loses nothing, keeps its order, and keeps nobody waiting for ever.

Properties, over any run of pushes, removals and takes while time goes on:
- conservation: each item that was pushed leaves exactly once, and what has not left is counted and held;
- held work is what waits, ascending by key, with the sums of its tokens;
- without long prompts and lateness, items leave by slack, then by arrival;
- an item whose second chance has passed is overtaken by none that arrives later in its lane;
- while both lanes wait, neither gets ahead of the other by more than the rules allow and one prompt.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.slack_queue import QueueRules, SlackQueue, Waiting
from core.types import HeldWork

RULES = QueueRules(max_items=8, long_from_tokens=100, lane_tokens=200, patience_s=5.0)
Item = Waiting[int]

keys = st.integers(-20, 60).map(float) | st.sampled_from((float("inf"), float("-inf")))
lengths = st.integers(0, 400)
actions = st.one_of(
    st.tuples(st.just("push"), keys, lengths, st.integers(0, 2)),
    st.tuples(st.just("take"), st.integers(0, 500), st.integers(0, 2)),
    st.tuples(st.just("remove"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.integers(0, 6)),
)


def queue_of(*items: Item, rules: QueueRules = RULES, now_s: float = 0.0) -> SlackQueue[int]:
    queue: SlackQueue[int] = SlackQueue(rules)
    for item in items:
        assert queue.push(item, now_s) is None
    return queue


def payloads(items: tuple[Item, ...]) -> list[int]:
    return [item.payload for item in items]


def check(queue: SlackQueue[int], inside: list[Item]) -> None:
    held = queue.held()
    assert len(queue) == len(inside) == len(held.keys_s)
    assert all(item in queue for item in inside)
    assert list(held.keys_s) == sorted(held.keys_s)
    tokens = [after - before for before, after in zip(held.tokens_before, held.tokens_before[1:], strict=False)]
    assert sorted(tokens) == sorted(item.prompt_tokens for item in inside)
    assert held.tokens_before == tuple(accumulate(tokens, initial=0))
    assert queue.held() is held


@settings(max_examples=300, deadline=None)
@given(st.lists(actions, max_size=50))
def test_each_item_leaves_exactly_once(script: list[tuple[object, ...]]) -> None:
    queue: SlackQueue[int] = SlackQueue(RULES)
    now_s, pushed, left = 0.0, [], []
    for action in script:
        match action:
            case ("push", float(key_s), int(tokens), int(rank)):
                item = Waiting(key_s, tokens, len(pushed), rank)
                pushed.append(item)
                gone = queue.push(item, now_s)
                left += [gone] if gone is not None else []
            case ("take", int(budget), int(at_least)):
                batch = queue.take(budget, now_s, at_least=at_least)
                assert len(batch) >= min(at_least, len(pushed) - len(left))
                assert sum(i.prompt_tokens for i in batch[at_least:]) <= budget
                left += batch
            case ("remove", int(number)) if number < len(pushed):
                was_inside = pushed[number] not in left
                assert queue.remove(pushed[number]) is was_inside
                left += [pushed[number]] if was_inside else []
            case ("wait", int(seconds)):
                now_s += seconds
                ahead = queue.peek(now_s)
                assert (ahead is None) is (len(pushed) == len(left))
        assert len(set(left)) == len(left)
        check(queue, [item for item in pushed if item not in left])
    left += queue.clear()
    assert set(left) == set(pushed)
    check(queue, [])


@given(st.lists(st.tuples(st.integers(0, 50).map(float), st.integers(0, 99)), max_size=8))
def test_without_long_or_late_ones_the_order_is_by_slack(items: list[tuple[float, int]]) -> None:
    queue = queue_of(*(Waiting(key_s, tokens, number) for number, (key_s, tokens) in enumerate(items)))
    expected = sorted(range(len(items)), key=lambda number: items[number][0])
    held = queue.held()
    assert held.keys_s == tuple(items[number][0] for number in expected)
    taken: list[int] = []
    while len(queue):
        head = queue.peek(0.0)
        batch = queue.take(150, 0.0)
        assert head is batch[0]
        taken += payloads(batch)
    assert taken == expected


def test_what_can_be_in_time_goes_before_what_cannot() -> None:
    queue = queue_of(Waiting(3.0, 10, 1), Waiting(6.0, 10, 2), Waiting(7.5, 10, 3), Waiting(9.0, 10, 4))
    assert queue.held().keys_s == (3.0, 6.0, 7.5, 9.0)
    assert queue.peek(4.0) == queue.peek(4.0)
    assert queue.held().keys_s == (6.0, 7.5, 8.0, 9.0)
    assert payloads(queue.take(100, 4.0)) == [2, 3, 1, 4]


@settings(deadline=None)
@given(st.floats(-30, 30), lengths, st.lists(st.tuples(st.floats(-100, 100), lengths), max_size=7))
def test_second_chances_bound_the_wait(key_s: float, tokens: int, later: list[tuple[float, int]]) -> None:
    first = Waiting(key_s, tokens, -1)
    queue = queue_of(first)
    now_s = max(key_s + RULES.patience_s, RULES.patience_s)
    for number, (later_key_s, later_tokens) in enumerate(later):
        queue.push(Waiting(later_key_s, later_tokens, number), now_s)
        now_s += 0.25
    for item in queue.take(10_000, now_s):
        if item is first:
            return
        assert (item.prompt_tokens >= 100) is not (tokens >= 100)
    pytest.fail("the first item was lost")


@settings(deadline=None)
@given(st.lists(st.tuples(keys, lengths), min_size=1, max_size=60), st.integers(0, 40).map(float))
def test_no_lane_gets_far_ahead_while_both_wait(items: list[tuple[float, int]], now_s: float) -> None:
    rules = QueueRules(long_from_tokens=100, lane_tokens=200, patience_s=5.0)
    queue = queue_of(*(Waiting(key_s, tokens, 0) for key_s, tokens in items), rules=rules)
    waiting = {is_long: sum((tokens >= 100) is is_long for _, tokens in items) for is_long in (False, True)}
    lead = 0
    while waiting[False] and waiting[True]:
        (item,) = queue.take(-1, now_s)
        is_long = item.prompt_tokens >= 100
        waiting[is_long] -= 1
        lead += -item.prompt_tokens if is_long else item.prompt_tokens
        assert -200 - 400 <= lead <= 200 + 99
    rest = queue.take(10**9, now_s)
    assert len(rest) == waiting[False] + waiting[True]


def test_short_prompts_pass_a_long_one_that_can_wait() -> None:
    queue = queue_of(Waiting(5.0, 1000, 1), *(Waiting(10.0 + i, 50, 2 + i) for i in range(6)))
    assert payloads(queue.take(150, 1.0)) == [2, 3, 4]
    assert payloads(queue.take(150, 5.0)) == [1]  # its latest start
    assert payloads(queue.take(150, 5.0)) == [5, 6, 7]


def test_long_prompts_that_cannot_wait_let_short_ones_by() -> None:
    longs = [Waiting(float(i), 300, i) for i in range(4)]
    shorts = [Waiting(50.0, 60, 10 + i) for i in range(4)]
    queue = queue_of(*longs, *shorts)
    order = [payloads(queue.take(0, 0.0))[0] for _ in range(8)]
    assert order == [0, 10, 11, 12, 13, 1, 2, 3]


def test_a_full_queue_lets_the_least_deserving_go() -> None:
    rules = QueueRules(max_items=3)
    protected, standard, effort = Waiting(9.0, 1, 0, 0), Waiting(1.0, 1, 1, 1), Waiting(1.0, 1, 2, 2)
    queue = queue_of(protected, standard, effort, rules=rules)
    assert queue.push(last := Waiting(2.0, 1, 3, 1), 0.0) is effort
    refused = Waiting(2.0, 1, 4, 1)
    assert queue.push(refused, 0.0) is refused
    assert queue.push(sooner := Waiting(0.5, 1, 5, 1), 0.0) is last
    assert queue.clear() == (sooner, standard, protected)


def test_a_queue_without_places_refuses() -> None:
    queue: SlackQueue[int] = SlackQueue(QueueRules(max_items=0))
    item = Waiting(1.0, 1, 0)
    assert queue.push(item, 0.0) is item
    assert (queue.take(10, 0.0), queue.peek(0.0), queue.held()) == ((), None, HeldWork())


def test_a_long_prompt_counts_for_a_part_of_a_batch() -> None:
    rules = QueueRules(long_from_tokens=100, most_counted_tokens=100)
    queue = queue_of(Waiting(0.0, 900, 1), Waiting(1.0, 90, 2), Waiting(2.0, 90, 3), rules=rules)
    assert payloads(queue.take(200, 0.0, at_least=0)) == [1, 2]


def test_what_does_not_fit_is_waited_for() -> None:
    queue = queue_of(Waiting(0.0, 90, 1), Waiting(1.0, 10, 2))
    assert queue.take(50, 0.0, at_least=0) == ()
    assert payloads(queue.take(50, 0.0)) == [1]
