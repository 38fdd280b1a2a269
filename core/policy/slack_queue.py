"""Requests that wait for room, in the order in which they should be let go.

Owns the order, the lanes, the ageing and who must go when the queue is full; the router holds requests back with it,
and prefill workers order their prompts by it. Must not know what it holds, nor the clock: the time is handed in.

The order is by latest start (earliest deadline first: Liu and Layland 1973, section 7), with two departures, for it
fails under overload:
- What can no longer start in time goes behind what can. It counts as if it might start `patience_s` later, once, so
  that its wait is bounded: when that time has come too, nothing that arrives later in its lane goes before it.
- Long prompts have a lane of their own. Short ones go first as long as the next long one can wait; once it cannot, the
  order decides, but neither lane gets more than `lane_tokens` and one prompt ahead of the other while both wait.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, TypeVar

from core.types import HeldWork

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Waiting(Generic[T]):
    """One request in a queue; equal only to itself."""

    key_s: float  # when it must start to be in time, of the clock that the queue is asked with
    prompt_tokens: int
    payload: T
    rank: int = 0  # who must go when the queue is full: the greatest first, see core.policy.context.Tier


@dataclass(frozen=True, slots=True)
class QueueRules:
    """How a queue orders and what it holds."""

    max_items: int = 1024
    long_from_tokens: int = 2048  # prompts from this length on are in the lane of long ones
    lane_tokens: int = 4096  # how far one lane may get ahead of the other
    patience_s: float = 5.0  # how much later than in time a request counts as if it might start
    most_counted_tokens: int = sys.maxsize  # what one prompt counts for, at most, in the budget of a batch


@dataclass(slots=True)
class _Lane(Generic[T]):
    """Some of the items as (key, number, item), each list ascending; keys of `late` are those of a second chance."""

    in_time: list[tuple[float, int, Waiting[T]]] = field(default_factory=list)
    late: list[tuple[float, int, Waiting[T]]] = field(default_factory=list)

    @property
    def first(self) -> tuple[float, int, Waiting[T]] | None:
        if self.in_time and self.late:
            return min(self.in_time[0], self.late[0])
        entries = self.in_time or self.late
        return entries[0] if entries else None


class SlackQueue(Generic[T]):
    """A bounded queue; each item that is pushed leaves exactly once: taken, removed, or handed back by `push`."""

    def __init__(self, rules: QueueRules) -> None:
        """Take the rules; the queue is empty."""
        self._rules = rules
        self._short: _Lane[T] = _Lane()
        self._long: _Lane[T] = _Lane()
        self._lead_tokens = 0  # taken from the short lane less from the long one, since both have waited
        self._next_number = 0
        # All and only the items that wait: their keys, and ascending lists of the same.
        self._entries: dict[Waiting[T], tuple[float, int, Waiting[T]]] = {}
        self._order: list[tuple[float, int, Waiting[T]]] = []
        self._keys_s: list[float] = []  # of _order
        self._tokens: list[int] = []  # of _order
        self._late: set[Waiting[T]] = set()  # all and only those whose key is not their own any longer
        self._worth: list[tuple[int, float, int, Waiting[T]]] = []  # the least deserving last
        self._held: HeldWork | None = HeldWork()  # None: made anew when asked for

    def __len__(self) -> int:
        """Count what waits."""
        return len(self._order)

    def __contains__(self, item: Waiting[T]) -> bool:
        """Tell whether this very item waits."""
        return item in self._entries

    @property
    def rules(self) -> QueueRules:
        """How this queue orders."""
        return self._rules

    def push(self, item: Waiting[T], now_s: float) -> Waiting[T] | None:
        """Put an item in; return the one that has to go because the queue is full, which may be this one.

        It is the one of the greatest rank, and of these the one whose turn would come last.
        """
        self._age(now_s)
        is_late = item.key_s < now_s
        key_s = max(item.key_s + self._rules.patience_s, now_s) if is_late else item.key_s
        entry = (key_s, self._next_number, item)
        self._next_number += 1
        gone = None
        if len(self._order) >= self._rules.max_items:
            if not self._worth or (item.rank, *entry[:2]) > self._worth[-1][:3]:
                return item
            gone = self._worth[-1][3]
            self.remove(gone)
        self._insert(entry, is_late=is_late)
        return gone

    def remove(self, item: Waiting[T]) -> bool:
        """Take an item out whose turn has not come; return whether it was there."""
        entry = self._entries.get(item)
        if entry is None:
            return False
        self._delete(entry)
        return True

    def peek(self, now_s: float) -> Waiting[T] | None:
        """Return the item whose turn is next, None if nothing waits."""
        self._age(now_s)
        return self._next(now_s)

    def take(self, budget_tokens: int, now_s: float, *, at_least: int = 1) -> tuple[Waiting[T], ...]:
        """Take the next items out, in turn, until one does not fit into the rest of a budget of prompt tokens.

        The first `at_least` are taken whatever their length. An item that does not fit is waited for: were it passed
        over, smaller ones could keep it waiting for ever.
        """
        self._age(now_s)
        batch: list[Waiting[T]] = []
        while (item := self._next(now_s)) is not None:
            counted = min(item.prompt_tokens, self._rules.most_counted_tokens)
            if counted > budget_tokens and len(batch) >= at_least:
                break
            budget_tokens -= counted
            if self._short.first is not None and self._long.first is not None:
                self._lead_tokens += -item.prompt_tokens if self._is_long(item) else item.prompt_tokens
            self._delete(self._entries[item])
            batch.append(item)
        return tuple(batch)

    def clear(self) -> tuple[Waiting[T], ...]:
        """Take everything out, in order."""
        items = tuple(entry[2] for entry in self._order)
        for item in items:
            self._delete(self._entries[item])
        return items

    def held(self) -> HeldWork:
        """Describe what waits, in order of latest start, lanes apart; the same object until something changes."""
        if self._held is None:
            self._held = HeldWork(tuple(self._keys_s), tuple(accumulate(self._tokens, initial=0)))
        return self._held

    def _is_long(self, item: Waiting[T]) -> bool:
        return item.prompt_tokens >= self._rules.long_from_tokens

    def _next(self, now_s: float) -> Waiting[T] | None:
        short, long = self._short.first, self._long.first
        if short is None or long is None:
            only = short or long
            return None if only is None else only[2]
        prefers_long = long[0] <= now_s and long < short
        if prefers_long and self._lead_tokens <= -self._rules.lane_tokens:
            prefers_long = False
        elif not prefers_long and self._lead_tokens >= self._rules.lane_tokens:
            prefers_long = True
        return long[2] if prefers_long else short[2]

    def _age(self, now_s: float) -> None:
        """Give those a later key that can no longer start in time; each once."""
        for lane in (self._short, self._long):
            while lane.in_time and lane.in_time[0][0] < now_s:
                key_s, number, item = lane.in_time[0]
                self._delete((key_s, number, item))
                self._insert((key_s + self._rules.patience_s, number, item), is_late=True)

    def _insert(self, entry: tuple[float, int, Waiting[T]], *, is_late: bool) -> None:
        key_s, number, item = entry
        lane = self._long if self._is_long(item) else self._short
        if is_late:
            self._late.add(item)
        insort(lane.late if is_late else lane.in_time, entry)
        index = bisect_left(self._order, entry)
        self._order.insert(index, entry)
        self._keys_s.insert(index, key_s)
        self._tokens.insert(index, item.prompt_tokens)
        insort(self._worth, (item.rank, key_s, number, item))
        self._entries[item] = entry
        self._held = None

    def _delete(self, entry: tuple[float, int, Waiting[T]]) -> None:
        key_s, number, item = entry
        lane = self._long if self._is_long(item) else self._short
        entries = lane.late if item in self._late else lane.in_time
        del entries[bisect_left(entries, entry)]
        index = bisect_left(self._order, entry)
        del self._order[index], self._keys_s[index], self._tokens[index]
        del self._worth[bisect_left(self._worth, (item.rank, key_s, number, item))]
        del self._entries[item]
        self._late.discard(item)
        self._held = None
        if self._short.first is None or self._long.first is None:
            self._lead_tokens = 0
