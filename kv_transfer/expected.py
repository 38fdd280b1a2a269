"""A hand-over as the receiver keeps it: registered by the engine, or offered before that.

Owns values only; who changes them, and when, is the receiver's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from core.errors import KVExpired
from kv_transfer.frames import Offer
from kv_transfer.landing import Landed, Landing
from kv_transfer.ledger import End
from kv_transfer.plan import ReceiveOpen

ENDED: Final = "the hand-over has ended on this side"


@dataclass(slots=True)
class Expected:
    """One registered hand-over."""

    open: ReceiveOpen
    expiry: asyncio.TimerHandle
    landed: Landed
    sender: tuple[str, int] | None = None  # worker and epoch of the first stream: the others must be of the same
    attempt: int = -1  # the highest that was let in
    landing: Landing | None = None  # the stream that is open
    end: tuple[End, set[int]] | None = None  # how it ended, and the blocks to compute

    @property
    def transfer_id(self) -> str:
        return self.open.params.transfer_id

    def check_open(self) -> None:
        """Raises KVExpired when the hand-over has ended."""
        if self.end is not None:
            raise KVExpired(ENDED)


@dataclass(frozen=True, slots=True)
class Waiter:
    """An offer that came before the engine was ready."""

    offer: Offer
    arrival: asyncio.Future[Expected]
