"""The account of every lease: blocks and bytes one side of a hand-over is responsible for.

At any moment, in blocks and in bytes: granted = held + released + expired. `held` is summed over the open leases,
the others are counters, so a lost or doubled lease shows as an imbalance. One ledger belongs to one engine process
and is changed from one thread.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

logger = logging.getLogger(__name__)


class Side(enum.StrEnum):
    """Which end of the hand-over holds the lease."""

    SEND = "send"
    RECEIVE = "receive"


class End(enum.StrEnum):
    """How a lease ends."""

    RELEASED = "released"
    EXPIRED = "expired"


class State(enum.StrEnum):
    """How far the hand-over of a lease has come."""

    GRANTED = "granted"
    TRANSFERRING = "transferring"
    LANDED = "landed"
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
    progress_s: float  # when the peer was last heard of, or the lease was granted
    state: State = State.GRANTED
    peer: str = ""  # of a send: the address; of a receive: the sender's worker id, once it has offered
    epoch: int = 0  # of the sending process; 0 while it is not known


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
        self.reached = dict.fromkeys(State, 0)  # leases that came to each state
        self.imbalances = 0  # changes after which the account did not balance: 0, or there is a bug

    def grant(
        self,
        side: Side,
        transfer_id: str,
        *,
        owner: str,
        num_blocks: int,
        num_bytes: int,
        lease_s: float,
        peer: str = "",
        epoch: int = 0,
    ) -> Lease:
        """Open a lease. Raises ValueError when this side already holds one for `transfer_id`."""
        key = (side, transfer_id)
        if key in self._open:
            raise ValueError(f"lease {transfer_id} is already open on the {side} side")
        now_s = self._clock_s()
        lease = Lease(
            transfer_id, side, owner, num_blocks, num_bytes, now_s, now_s + lease_s, now_s, peer=peer, epoch=epoch
        )
        self._open[key] = lease
        self._granted[0] += num_blocks
        self._granted[1] += num_bytes
        self.reached[State.GRANTED] += 1
        self._check()
        return lease

    def transferring(self, side: Side, transfer_id: str, *, peer: str, epoch: int) -> None:
        """Note that the two ends have agreed; does nothing for a lease that is not open."""
        self._move(side, transfer_id, State.TRANSFERRING, peer=peer, epoch=epoch)

    def landed(self, side: Side, transfer_id: str) -> None:
        """Note that all bytes are in their place; does nothing for a lease that is not open."""
        self._move(side, transfer_id, State.LANDED)

    def progress(self, side: Side, transfer_id: str) -> None:
        """Note a sign of life of the peer; does nothing for a lease that is not open."""
        lease = self._open.get((side, transfer_id))
        if lease is not None:
            self._open[side, transfer_id] = replace(lease, progress_s=self._clock_s())

    def end(self, side: Side, transfer_id: str, how: End) -> bool:
        """Close a lease; return False when it is not open (ended before)."""
        lease = self._open.pop((side, transfer_id), None)
        if lease is None:
            return False
        self._ended[how][0] += lease.num_blocks
        self._ended[how][1] += lease.num_bytes
        self.reached[State(how.value)] += 1
        self._check()
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

    def _move(
        self, side: Side, transfer_id: str, state: State, *, peer: str | None = None, epoch: int | None = None
    ) -> None:
        lease = self._open.get((side, transfer_id))
        if lease is None:
            return
        self._open[side, transfer_id] = replace(
            lease,
            state=state,
            progress_s=self._clock_s(),
            peer=lease.peer if peer is None else peer,
            epoch=lease.epoch if epoch is None else epoch,
        )
        if state is not lease.state:
            self.reached[state] += 1

    def _check(self) -> None:
        if self.blocks().imbalance == 0 and self.bytes().imbalance == 0:
            return
        if self.imbalances == 0:
            logger.error("the KV ledger does not balance: %s, %s", self.blocks(), self.bytes())
        self.imbalances += 1

    def _account(self, unit: int, held: int) -> Account:
        return Account(self._granted[unit], held, self._ended[End.RELEASED][unit], self._ended[End.EXPIRED][unit])
