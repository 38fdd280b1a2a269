"""A hand-over as the sender keeps it.

Owns values only; who changes them, and when, is the sender's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from core.errors import KVTransferError
from kv_transfer.frames import Offer
from kv_transfer.send_queue import SendQueue
from kv_transfer.transport import CacheReader


@dataclass(slots=True)
class Sending:
    """One hand-over on its way out."""

    offer: Offer
    request_id: str
    peer: str
    lease_s: float
    due_s: float  # of the monotonic clock: when it must have landed for its request to keep its promise
    queue: SendQueue
    stays: bool  # blocks may be left in the cache: its stream reads them there, or is likely to
    announced: bool = False  # the KV thread was told of frames and has not looked since
    complete: bool = False  # the engine put the last frame
    completed_s: float = 0.0  # when it did
    sent_before_complete: int = 0  # bytes that had left by then: the part hidden behind the computation
    busy_s: float = 0.0  # spent sending, and waiting for the last word
    ended_s: float | None = None  # when END was sent
    progress_s: float = 0.0  # when the peer last acknowledged anything
    problem: KVTransferError | None = None  # why the engine gave it up
    running: bool = False  # the task has begun and has not ended: one cancelled before would not tell the peer
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    reader: CacheReader | None = None  # the stream that is open, if its peer reads the cache
    is_called_back: bool = False  # the engine took its blocks back
    broken_off: bool = False  # and so ended the stream that is open
