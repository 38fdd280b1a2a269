"""How much of the transfers prefill hid: sums that the sender keeps. Owns values only."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Overlap:
    """How much of the transfers was hidden behind the prefill that made them, summed over landed hand-overs."""

    num_bytes: int = 0
    hidden_bytes: int = 0  # had left when the last layer was computed
    exposed_s: float = 0.0  # from the last layer computed to the decode side's word that all is in its cache

    def add(self, num_bytes: int, hidden_bytes: int, completed_s: float) -> None:
        """Count one hand-over that has just landed."""
        self.num_bytes += num_bytes
        self.hidden_bytes += hidden_bytes
        self.exposed_s += time.monotonic() - completed_s
