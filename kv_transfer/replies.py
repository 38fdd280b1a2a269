"""What the decode side answers to the sender of a hand-over.

Owns which answers end the hand-over for good. Must not know streams, nor what becomes of a hand-over.
"""

from __future__ import annotations

from core.errors import CorruptFrame, KVTransferError, PeerMismatch, TransferAborted
from kv_transfer.frames import Header, Kind, read_control, read_problem


class Verdict(Exception):
    """The decode side has ended the hand-over; another stream would not change its mind."""

    def __init__(self, error: KVTransferError, *, declines: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.declines = declines  # it needs nothing: its request ended, or has the whole prompt cached


def checked(message: bytes, *wanted: Kind) -> Header:
    """Return a reply of the wanted kind. Raises Verdict with what the peer reports instead, or CorruptFrame."""
    header, payload = read_control(message)
    if header.kind in wanted:
        return header
    if header.kind in (Kind.REFUSED, Kind.FAILED):
        problem = read_problem(payload)
        text = f"the decode side says {problem.error}: {problem.message}"
        if problem.error == PeerMismatch.name:
            raise Verdict(PeerMismatch(text), declines=False)
        declines = header.kind is Kind.REFUSED and problem.error == TransferAborted.name
        raise Verdict(TransferAborted(text), declines=declines)
    raise CorruptFrame(f"the decode side answered out of turn: {header.kind.name}")
