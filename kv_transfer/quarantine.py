"""Senders whose KV was wrong too often, and for how long nothing is taken from them.

Owns the count of wrong hand-overs by sender and the growing, bounded time out. Pure: it is told what happened, and by a
clock when. Must not know how KV is compared, nor frames.

A single flipped bit is bad luck and is recomputed; several within the window are a broken pair of machines, and each
costs the decode side a prompt. A sender that was restarted is another one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from core.errors import PeerMismatch
from core.types import Quarantined

Sender: TypeAlias = tuple[str, int]  # worker and epoch
MISMATCHES: Final = 3  # within the window, before a sender is left out
WINDOW_S: Final = 600.0
FIRST_S: Final = 60.0
LONGEST_S: Final = 3600.0  # each time out is twice the one before, up to this
QUARANTINED: Final = "baton_quarantined"  # where the connector puts the list
_MAX_SENDERS: Final = 1024  # the one that erred longest ago is forgotten
_MAX_REASON_CHARS: Final = 200


@dataclass(slots=True)
class _Record:
    """One sender that was wrong lately."""

    mismatches: int = 0  # since the last time out, or within the window
    last_s: float = 0.0
    outs: int = 0  # times out, each soon after the one before
    until_s: float = 0.0
    reason: str = ""


def read_quarantined(data: Mapping[str, Any]) -> tuple[Quarantined, ...] | None:
    """Read what the connector carried with a step's statistics; None: what was said before still holds."""
    listed = data.get(QUARANTINED)
    return None if listed is None else tuple(Quarantined(**sender) for sender in listed)


class Quarantine:
    """All and only the senders whose KV was wrong within the window, or that are left out."""

    def __init__(self, clock_s: Callable[[], float], *, mismatches: int = MISMATCHES) -> None:
        """Leave a sender out after so many wrong hand-overs within the window."""
        self._clock_s = clock_s
        self._mismatches = mismatches
        self._records: OrderedDict[Sender, _Record] = OrderedDict()  # the one that erred last is last
        self.mismatches = 0  # in all

    def mismatch(self, sender: Sender, reason: str) -> None:
        """Note that a hand-over of a sender brought wrong bytes; a few of them, or one after a time out, end in one."""
        now_s = self._clock_s()
        self.mismatches += 1
        record = self._records.setdefault(sender, _Record())
        self._records.move_to_end(sender)
        while len(self._records) > _MAX_SENDERS:
            self._records.popitem(last=False)
        if now_s > max(record.last_s, record.until_s) + WINDOW_S:
            record.mismatches = record.outs = 0
        record.mismatches += 1
        record.last_s = now_s
        if now_s < record.until_s:
            return  # a hand-over that was under way
        if record.mismatches >= self._mismatches or record.outs:
            record.until_s = now_s + min(LONGEST_S, FIRST_S * 2.0 ** min(record.outs, 30))
            record.reason = f"{record.mismatches} hand-overs with wrong KV, the last: {reason[:_MAX_REASON_CHARS]}"
            record.outs += 1
            record.mismatches = 0

    def check(self, sender: Sender) -> None:
        """Raises PeerMismatch while a sender is left out."""
        record = self._records.get(sender)
        if record is not None and (left_s := record.until_s - self._clock_s()) > 0:
            raise PeerMismatch(f"{sender[0]} is in quarantine here for {left_s:.0f} s more: {record.reason}")

    def forgive(self) -> None:
        """Forget who was wrong: what made them so on purpose has ended."""
        self._records.clear()

    def report(self) -> tuple[Quarantined, ...]:
        """List who is left out, for how long from now, and why."""
        now_s = self._clock_s()
        return tuple(
            Quarantined(worker_id, epoch, record.outs, record.until_s - now_s, record.reason)
            for (worker_id, epoch), record in self._records.items()
            if record.until_s > now_s
        )
