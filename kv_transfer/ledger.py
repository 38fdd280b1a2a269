"""The account of every lease: blocks and bytes one side of a hand-over is responsible for.

At any moment, in blocks and in bytes: granted = held + released + expired. `held` is summed over the open leases,
the others are counters, so a lost or doubled lease shows as an imbalance. One ledger belongs to one engine process
and is changed from one thread.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Side(enum.StrEnum):
    """Which end of the hand-over holds the lease."""

    SEND = "send"
    RECEIVE = "receive"


class End(enum.StrEnum):
    """How a lease ends."""

    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Lease:
    """One open lease."""

    transfer_id: str
    side: Side
    owner: str  # engine request id
    num_blocks: int
    num_bytes: int
    granted_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Account:
    """Totals of one unit (blocks or bytes) since start."""

    granted: int
    held: int
    released: int
    expired: int

    @property
    def imbalance(self) -> int:
        """What is unaccounted for; anything but 0 is a bug."""
        return self.granted - self.held - self.released - self.expired


class LeaseLedger:
    """All and only the leases that are open, and totals of those that ended."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._open: dict[tuple[Side, str], Lease] = {}
        self._granted = [0, 0]  # blocks, bytes
        self._ended = {End.RELEASED: [0, 0], End.EXPIRED: [0, 0]}

    def grant(
        self, side: Side, transfer_id: str, *, owner: str, num_blocks: int, num_bytes: int, lease_s: float
    ) -> Lease:
        """Open a lease. Raises ValueError when this side already holds one for `transfer_id`."""
        key = (side, transfer_id)
        if key in self._open:
            raise ValueError(f"lease {transfer_id} is already open on the {side} side")
        now_s = self._clock_s()
        lease = Lease(transfer_id, side, owner, num_blocks, num_bytes, now_s, now_s + lease_s)
        self._open[key] = lease
        self._granted[0] += num_blocks
        self._granted[1] += num_bytes
        return lease

    def end(self, side: Side, transfer_id: str, how: End) -> bool:
        """Close a lease; return False when it is not open (ended before)."""
        lease = self._open.pop((side, transfer_id), None)
        if lease is None:
            return False
        self._ended[how][0] += lease.num_blocks
        self._ended[how][1] += lease.num_bytes
        return True

    @property
    def open_leases(self) -> tuple[Lease, ...]:
        """The open leases, oldest first."""
        return tuple(self._open.values())

    def blocks(self) -> Account:
        """Account in blocks."""
        return self._account(0, sum(lease.num_blocks for lease in self._open.values()))

    def bytes(self) -> Account:
        """Account in bytes."""
        return self._account(1, sum(lease.num_bytes for lease in self._open.values()))

    def _account(self, unit: int, held: int) -> Account:
        return Account(self._granted[unit], held, self._ended[End.RELEASED][unit], self._ended[End.EXPIRED][unit])
