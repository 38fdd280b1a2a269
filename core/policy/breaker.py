"""Which workers to leave alone for a while because request after request fails on them.

Owns the count of failures by worker and the growing, bounded time out. Pure: it is told what happened and when. Must
not know what a failure is, nor how requests are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NONE_LEFT_OUT: Final[frozenset[str]] = frozenset()


class BreakerState(StrEnum):
    """How far a worker is trusted."""

    CLOSED = "closed"  # requests flow
    OPEN = "open"  # left out, or one request is on its way to find out
    HALF_OPEN = "half-open"  # the next request finds out


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a worker is left out, and for how long."""

    failures: int = 3  # in a row
    first_s: float = 1.0
    max_s: float = 30.0  # each time out is twice the one before, up to this


@dataclass(slots=True)
class _Trouble:
    failures: int = 0  # in a row
    outs: int = 0  # times out since the last success
    until_s: float | None = None  # left out before this; None: not left out
    is_probed: bool = False  # a request was let through since the time out began


class Breakers:
    """One breaker for each worker that failed lately; the others cost nothing."""

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self._settings = settings or BreakerSettings()
        self._troubles: dict[str, _Trouble] = {}  # all and only the workers whose last outcome was a failure

    def left_out(self, now_s: float) -> frozenset[str]:
        """Name the workers that get no requests at `now_s`."""
        if not self._troubles:
            return NONE_LEFT_OUT
        return frozenset(w for w, t in self._troubles.items() if t.until_s is not None and now_s < t.until_s)

    def sent(self, worker_id: str, now_s: float) -> None:
        """Note that a request goes to a worker: to a half-open one it is the only one until its outcome is known.

        A probe that never ends, or whose client leaves, is replaced by another after the time of one more time out.
        """
        trouble = self._troubles.get(worker_id)
        if trouble is not None and trouble.until_s is not None and now_s >= trouble.until_s:
            trouble.is_probed = True
            trouble.until_s = now_s + self._time_out_s(trouble)

    def succeeded(self, worker_id: str) -> None:
        """Trust a worker again."""
        if self._troubles:
            self._troubles.pop(worker_id, None)

    def failed(self, worker_id: str, now_s: float) -> None:
        """Note a failure; those of requests sent before the time out began change nothing."""
        trouble = self._troubles.setdefault(worker_id, _Trouble())
        trouble.failures += 1
        is_out = trouble.until_s is not None and now_s < trouble.until_s
        if trouble.failures < self._settings.failures or (is_out and not trouble.is_probed):
            return
        trouble.outs += 1
        trouble.is_probed = False
        trouble.until_s = now_s + self._time_out_s(trouble)

    def state(self, worker_id: str, now_s: float) -> BreakerState:
        """Tell how far a worker is trusted."""
        trouble = self._troubles.get(worker_id)
        if trouble is None or trouble.until_s is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < trouble.until_s else BreakerState.HALF_OPEN

    def keep_only(self, worker_ids: frozenset[str]) -> None:
        """Forget the workers that are no longer there."""
        for gone in self._troubles.keys() - worker_ids:
            del self._troubles[gone]

    def _time_out_s(self, trouble: _Trouble) -> float:
        doublings = min(max(0, trouble.outs - 1), 30)
        return min(self._settings.first_s * 2.0**doublings, self._settings.max_s)
