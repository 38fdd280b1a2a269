"""The order in which transfers use a link that is too short for all of them.

Owns what waits for one link and whose turn it is. Pure: the clock is handed in. Must not know streams or frames.

All frames of one request, its layers, chunks and ranks, are one unit, for the request can only go on when the last of
them has landed: a coflow (Chowdhury, Zhong, Stoica: Varys, SIGCOMM 2014). As there, each unit has the whole link, not
a share of it, and none is sped up at the cost of another's deadline. Varys admits a coflow only if its deadline can be
kept and leaves the others the rest; here all come in, and those that cannot all keep their deadlines are told apart by
Moore's rule (Management Science 15(1), 1968), which on one link leaves the fewest late: earliest deadline first, and
whenever one would be late, the one that needs the link longest so far stands back. Those that stand back take what is
left, in order of their deadlines, and one turn in `AGED_EVERY` once they are late by `aged_s`: nobody waits for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

AGED_EVERY: Final = 4
WIDTH: Final = 2  # one sends while the other reads its acknowledgements; more only slow the first


@dataclass(slots=True)
class _Coflow:
    """One request's hand-over, on this link."""

    deadline_s: float
    unsent_bytes: int  # still to go over the link, staged or not
    staged_bytes: int = 0  # may go now
    is_sending: bool = False  # it has been given a turn


class CoflowQueue:
    """Says whose turn it is: the hand-over with the least slack that has something to send."""

    def __init__(
        self,
        *,
        clock_s: Callable[[], float],
        bytes_per_s: float,
        width: int = WIDTH,
        aged_s: float = 1.0,
    ) -> None:
        if bytes_per_s <= 0 or width < 1:
            raise ValueError("a link carries more than 0 bytes a second, and at least one transfer at a time")
        self.bytes_per_s = bytes_per_s  # of the link, as measured; may be changed at any time
        self._clock_s = clock_s
        self._width = width
        self._aged_s = aged_s
        self._coflows: dict[str, _Coflow] = {}  # all and only those that have arrived and not finished
        self._sending = 0  # how many have a turn
        self._turns = 0

    @property
    def num_sending(self) -> int:
        """How many have a turn."""
        return self._sending

    def arrive(self, transfer_id: str, deadline_s: float, num_bytes: int) -> None:
        """Add a hand-over that must have landed at `deadline_s` of the clock. Raises ValueError if it is here."""
        if transfer_id in self._coflows:
            raise ValueError(f"hand-over {transfer_id} waits for the link already")
        self._coflows[transfer_id] = _Coflow(deadline_s, num_bytes)

    def staged(self, transfer_id: str, num_bytes: int) -> None:
        """Note that `num_bytes` more may go; a hand-over that has ended meanwhile is left alone."""
        coflow = self._coflows.get(transfer_id)
        if coflow is not None:
            coflow.staged_bytes += num_bytes
            coflow.unsent_bytes = max(coflow.unsent_bytes, coflow.staged_bytes)

    def withdraw(self, transfer_id: str, num_bytes: int) -> None:
        """Take back that `num_bytes` may go; they are still to be sent."""
        coflow = self._coflows.get(transfer_id)
        if coflow is not None:
            coflow.staged_bytes = max(0, coflow.staged_bytes - num_bytes)

    def next(self) -> str | None:
        """Give the next turn and say to whom; it ends with `sent`. None: nothing is staged, or enough send already."""
        if self._sending >= self._width:
            return None
        transfer_id = self._aged() if (self._turns + 1) % AGED_EVERY == 0 else None
        transfer_id = transfer_id or next((name for name in self.order() if self._may_send(name)), None)
        if transfer_id is None:
            return None
        self._turns += 1
        self._sending += 1
        self._coflows[transfer_id].is_sending = True
        return transfer_id

    def sent(self, transfer_id: str, num_bytes: int) -> None:
        """End a turn in which `num_bytes` left."""
        coflow = self._coflows.get(transfer_id)
        if coflow is None or not coflow.is_sending:
            return
        coflow.is_sending = False
        self._sending -= 1
        coflow.staged_bytes = max(0, coflow.staged_bytes - num_bytes)
        coflow.unsent_bytes = max(0, coflow.unsent_bytes - num_bytes)

    def finish(self, transfer_id: str) -> None:
        """Forget a hand-over, landed or given up, with its turn; idempotent."""
        coflow = self._coflows.pop(transfer_id, None)
        if coflow is not None and coflow.is_sending:
            self._sending -= 1

    def order(self) -> list[str]:
        """List who goes before whom: those that can all keep their deadlines, then the others, each by deadline."""
        by_deadline = sorted(self._coflows, key=self._key)
        free_s = self._clock_s()  # when the link has carried all that were kept so far
        kept: list[tuple[float, str]] = []  # heap: the one that needs the link longest first
        late: set[str] = set()
        for name in by_deadline:
            coflow = self._coflows[name]
            needs_s = coflow.unsent_bytes / self.bytes_per_s
            free_s += needs_s
            heapq.heappush(kept, (-needs_s, name))
            if free_s > coflow.deadline_s:
                longest_s, stands_back = heapq.heappop(kept)
                free_s += longest_s  # negative
                late.add(stands_back)
        return sorted(by_deadline, key=lambda name: (name in late, *self._key(name)))

    def _aged(self) -> str | None:
        """Return the one that is late longest, if that is long, for its turn out of order."""
        longest_late_s = self._clock_s() - self._aged_s
        aged = [name for name, c in self._coflows.items() if c.deadline_s <= longest_late_s and self._may_send(name)]
        return min(aged, key=self._key, default=None)

    def _may_send(self, name: str) -> bool:
        coflow = self._coflows[name]
        return coflow.staged_bytes > 0 and not coflow.is_sending

    def _key(self, name: str) -> tuple[float, str]:
        # Ranks of one request on their own links: equal deadlines are ordered alike everywhere.
        return self._coflows[name].deadline_s, name
