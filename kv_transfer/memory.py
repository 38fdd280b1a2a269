"""What a receiver remembers of hand-overs that are over and of those who sent them; bounded, the oldest is forgotten.

Owns three tables and their bounds. Must not know streams or leases.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeVar

from core.errors import PeerMismatch
from kv_transfer.frames import Offer

_V = TypeVar("_V")
_MAX_TRANSFERS: Final = 8192
_MAX_SENDERS: Final = 4096
_MAX_REASON_CHARS: Final = 500  # of what a peer says


class Memory:
    """Hand-overs that will never happen, those that have landed, and the latest epoch of each worker."""

    def __init__(self) -> None:
        self._dead: OrderedDict[str, str] = OrderedDict()  # transfer id -> why
        self._landed: OrderedDict[str, tuple[str, int]] = OrderedDict()  # transfer id -> worker and epoch
        self._epochs: OrderedDict[str, int] = OrderedDict()  # worker -> the latest seen

    def bury(self, transfer_id: str, reason: str) -> str:
        """Note that a hand-over will never happen; return the reason as it is kept."""
        _remember(self._dead, transfer_id, reason[:_MAX_REASON_CHARS], _MAX_TRANSFERS)
        return self._dead[transfer_id]

    def why_dead(self, transfer_id: str) -> str | None:
        """Say why a hand-over will never happen; None when that is not known."""
        return self._dead.get(transfer_id)

    def note_landed(self, transfer_id: str, sender: tuple[str, int]) -> None:
        """Note who has sent a hand-over whole."""
        _remember(self._landed, transfer_id, sender, _MAX_TRANSFERS)

    def has_landed(self, offer: Offer) -> bool:
        """Whether the same sender has this hand-over behind it and does not know."""
        return self._landed.get(offer.transfer_id) == (offer.worker_id, offer.epoch)

    def check_epoch(self, offer: Offer) -> None:
        """Remember the latest epoch of a worker. Raises PeerMismatch for an older one: that process is gone."""
        latest = self._epochs.get(offer.worker_id, offer.epoch)
        if offer.epoch < latest:
            raise PeerMismatch(f"{offer.worker_id} has been started again: epoch {offer.epoch} is older than {latest}")
        _remember(self._epochs, offer.worker_id, offer.epoch, _MAX_SENDERS)


def _remember(table: OrderedDict[str, _V], key: str, value: _V, bound: int) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > bound:
        table.popitem(last=False)
