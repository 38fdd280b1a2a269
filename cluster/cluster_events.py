"""What happened in a cluster, numbered, for whoever asks or waits.

Owns the list and its bound. Must not know what events mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from cluster.cluster_status import ClusterEvent

EVENTS_KEPT = 200


class EventLog:
    """The latest events; `clock` is in seconds since the cluster began."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.is_muted = False  # what is noted is known already
        self.clock = clock
        self._events: deque[ClusterEvent] = deque(maxlen=EVENTS_KEPT)
        self._num_events = 0
        self._news = asyncio.Event()  # replaced at each event: whoever holds it learns of the next one

    def note(self, subject: str, what: str, *, is_failure: bool = False, took_s: float | None = None) -> None:
        """Add an event; `took_s` is the time of something that was asked for and is done."""
        if self.is_muted:
            return
        self._num_events += 1
        self._events.append(ClusterEvent(self._num_events, self.clock(), subject, what, is_failure, took_s))
        news, self._news = self._news, asyncio.Event()
        news.set()

    def latest(self, count: int) -> tuple[ClusterEvent, ...]:
        """Return up to `count` events, oldest first."""
        return tuple(self._events)[-count:]

    def restore(self, events: Sequence[ClusterEvent]) -> None:
        """Go on after the events that an earlier life of the controller kept."""
        self._events.extend(events)
        self._num_events = max([self._num_events, *(event.number for event in events)])

    async def after(self, number: int, wait_s: float) -> tuple[ClusterEvent, ...]:
        """Return the events after `number`; when there are none, wait for one, but no longer than `wait_s`."""
        news = self._news
        if self._num_events <= number:
            try:
                async with asyncio.timeout(wait_s):
                    await news.wait()
            except TimeoutError:
                return ()
        return tuple(event for event in self._events if event.number > number)
