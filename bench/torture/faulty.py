"""A transport that breaks what goes through it, as a bad network or a dying peer would.

Owns the kinds of faults and their odds, drawn from one seeded generator. Wraps a real transport and changes nothing on
the receiving side: whatever arrives has really travelled.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

from core.errors import TransferAborted
from kv_transfer.frames import HEADER_BYTES
from kv_transfer.transport import CacheReader, Outgoing, Serve, StagedFrame, Transport

_CHECKSUM_AT: Final = HEADER_BYTES - 1  # the last byte of a header belongs to its checksum
_FROZEN_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely each fault is, for one write of one stream."""

    lose: float = 0.0  # a frame is never sent
    double: float = 0.0  # a frame is sent twice
    swap: float = 0.0  # two frames change places
    corrupt: float = 0.0  # a frame's checksum is not that of its bytes
    misplace: float = 0.0  # a frame says that it is of another layer
    delay: float = 0.0  # nothing is sent for a while
    cut: float = 0.0  # the stream breaks
    mute: float = 0.0  # a frame without KV is never sent: the peer waits
    freeze: float = 0.0  # the sender's KV thread stands still, as that of a stopped process does

    def scaled(self, factor: float) -> Odds:
        """Make every fault `factor` times as likely."""
        return Odds(**{field.name: getattr(self, field.name) * factor for field in fields(self)})


class FaultyTransport:
    """Implements kv_transfer.transport.Transport; streams it opens are faulty, those it takes are as they come."""

    def __init__(self, inner: Transport, odds: Odds, chance: random.Random, counts: Counter[str]) -> None:
        """`counts` is added to, by kind of fault; `chance` is used by the KV thread alone."""
        self.name = inner.name
        self._inner = inner
        self._odds = odds
        self._chance = chance
        self._counts = counts

    async def listen(self, host: str, serve: Serve) -> str:
        """See Transport."""
        return await self._inner.listen(host, serve)

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        """See Transport."""
        inner = await self._inner.connect(address, timeout_s)
        if isinstance(inner, CacheReader):
            return _FaultyReader(inner, inner, self._odds, self._chance, self._counts)
        return _FaultyOutgoing(inner, self._odds, self._chance, self._counts)

    async def close(self) -> None:
        """See Transport."""
        await self._inner.close()


class _FaultyOutgoing:
    def __init__(self, inner: Outgoing, odds: Odds, chance: random.Random, counts: Counter[str]) -> None:
        self._inner = inner
        self._odds = odds
        self._chance = chance
        self._counts = counts

    async def write(self, message: bytes) -> None:
        self._cut_perhaps()
        if self._falls(self._odds.mute, "mute"):
            return
        await self._inner.write(message)

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        self._cut_perhaps()
        if self._falls(self._odds.freeze, "freeze"):
            time.sleep(_FROZEN_S)  # noqa: ASYNC251
        if self._falls(self._odds.delay, "delay"):
            await asyncio.sleep(self._chance.random() * 0.02)
        sent: list[StagedFrame] = []
        for frame in frames:
            if self._falls(self._odds.lose, "lose"):
                continue
            sent.append(self._spoiled(frame))
            if self._falls(self._odds.double, "double"):
                sent.append(frame)
        if len(sent) > 1 and self._falls(self._odds.swap, "swap"):
            at = self._chance.randrange(len(sent) - 1)
            sent[at : at + 2] = reversed(sent[at : at + 2])
        if sent:
            await self._inner.write_blocks(sent)

    async def read(self) -> bytes:
        self._cut_perhaps()
        return await self._inner.read()

    def close(self) -> None:
        self._inner.close()

    def _spoiled(self, frame: StagedFrame) -> StagedFrame:
        header = bytearray(frame.header)
        if self._falls(self._odds.corrupt, "corrupt"):
            header[_CHECKSUM_AT] ^= 1 << self._chance.randrange(8)
        if self._falls(self._odds.misplace, "misplace"):
            header[2] ^= 1  # the low byte of the layer
        return replace(frame, header=bytes(header))

    def _cut_perhaps(self) -> None:
        if self._falls(self._odds.cut, "cut"):
            self._inner.close()
            raise TransferAborted("the stream was cut")

    def _falls(self, odds: float, kind: str) -> bool:
        if odds and self._chance.random() < odds:
            self._counts[kind] += 1
            return True
        return False


class _FaultyReader(_FaultyOutgoing):
    """A stream whose peer reads the cache."""

    def __init__(
        self, inner: Outgoing, reader: CacheReader, odds: Odds, chance: random.Random, counts: Counter[str]
    ) -> None:
        super().__init__(inner, odds, chance, counts)
        self.revoke = reader.revoke
