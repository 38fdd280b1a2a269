"""When a decode request had its blocks and when its KV had landed, from the scheduler's half of the connector to the
front.

Owns the form in which vLLM carries it: as `kv_transfer_params` of the request's last output, which the front takes out
again before a client could see it. Times are of the machine's monotonic clock; the scheduler learns that KV has landed
at the end of the step in which it did. Must not know requests beyond their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

_KEY: Final = "baton_received_at_s"


class ReceiveTimes:
    """All and only the requests that were given blocks for a hand-over and have not ended."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._times: dict[str, list[float]] = {}  # blocks, and landed once it is

    def had_blocks(self, request_id: str) -> None:
        """Note that blocks were reserved; the first time counts."""
        self._times.setdefault(request_id, [self._clock_s()])

    def landed(self, request_ids: Iterable[str]) -> None:
        """Note that the hand-overs of these requests have ended."""
        for request_id in request_ids:
            times = self._times.get(request_id)
            if times is not None and len(times) == 1:
                times.append(self._clock_s())

    def take(self, request_id: str) -> dict[str, Any] | None:
        """Give out what is known of a request that has ended; None where there is nothing to tell."""
        times = self._times.pop(request_id, ())
        return {_KEY: times} if len(times) == 2 else None


def read_times(params: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Read when there were blocks, and when all had landed; None where an output carries nothing of it."""
    times = None if params is None else params.get(_KEY)
    return None if times is None else (float(times[0]), float(times[1]))
