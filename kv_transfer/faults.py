"""Faults that a test or a chaos run asks one worker to make in its hand-overs.

Read from the worker's spec; changed at run time through the control call only when the spec says `runtime`, which is
all that a user's configuration can set (`kv.allow_faults`). Layers are counted from 1; 0 means never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from core.errors import ConfigError


@dataclass(slots=True)
class SendFaults:
    """What the sending side does wrong."""

    drop_layer: int = 0  # never send the frames of this layer
    corrupt_layer: int = 0  # flip one byte in the frames of this layer
    zero_blocks: int = 0  # send zeros instead of KV, with right checksums: the negative control
    never_offer: int = 0  # behave as if the hand-over had been sent, but stay silent
    skip_first: int = 0  # leave this many hand-overs untouched first
    only: int = 1 << 30  # apply to this many hand-overs
    runtime: int = 0  # 1: the control call may replace these faults

    @classmethod
    def parse(cls, raw: Mapping[str, str]) -> SendFaults:
        """Build from the spec's pairs. Raises ConfigError for an unknown fault or a value that is no integer."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise ConfigError(f"unknown KV faults {unknown}; known: {sorted(known)}")
        try:
            return cls(**{name: int(value) for name, value in raw.items()})
        except ValueError as exc:
            raise ConfigError(f"KV faults must be integers: {dict(raw)}") from exc

    def take(self) -> SendFaults | None:
        """Count one hand-over; return the faults that apply to it, or None."""
        if self.skip_first > 0:
            self.skip_first -= 1
            return None
        if self.only <= 0:
            return None
        self.only -= 1
        active = self.drop_layer or self.corrupt_layer or self.zero_blocks or self.never_offer
        return self if active else None

    def drops(self, layer: int) -> bool:
        """Whether a layer (from 0) is never sent."""
        return self.drop_layer == layer + 1

    def spoil_blocks(self, view: memoryview) -> None:
        """Change copied blocks before their checksum is made."""
        if self.zero_blocks:
            view[:] = bytes(view.nbytes)

    def spoil_frame(self, view: memoryview, layer: int) -> None:
        """Change copied blocks of a layer (from 0) after their checksum was made."""
        if self.corrupt_layer == layer + 1:
            view[-1] ^= 0xFF
