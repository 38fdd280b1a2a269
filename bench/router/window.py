"""What the load client saw in one window of time, as it travels from the client to the report.

Owns the values, their quantiles and their JSON form. Must not know which system was loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.core_wait import CoreTimes


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of some times, in milliseconds; all zero for none."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of_ns(cls, values: Sequence[int]) -> Spread:
        """Take the quantiles of times in nanoseconds."""
        if not values:
            return cls()
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(*(ordered[min(last, int(share * len(ordered)))] / 1e6 for share in (0.5, 0.99, 1.0)))


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one test."""

    seconds: float
    requests: int  # complete and right
    tokens: int  # events with a token
    errors: int
    first_error: str
    latency: Spread  # of whole requests
    ttft: Spread  # of streams: request written to first token read
    relay: Spread  # of tokens: engine's step to client's read
    gap: Spread  # between the tokens of a stream
    times: Mapping[str, CoreTimes] = field(default_factory=dict)  # of the processes watched, by name, and "client"
    busy_cores: float = 0.0  # of the whole machine

    @property
    def requests_per_s(self) -> float:
        """Requests that were completed each second."""
        return self.requests / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens that came each second."""
        return self.tokens / self.seconds

    def cores(self, name: str) -> float:
        """The share of a core that a process tree used; 0 if it was not watched."""
        found = self.times.get(name)
        return found.ran_s / self.seconds if found is not None else 0.0

    @property
    def other_cores(self) -> float:
        """What the machine did beside this benchmark."""
        return max(0.0, self.busy_cores - sum(map(self.cores, self.times)))

    def to_json(self) -> str:
        """Serialise in one line; `from_json` gives back an equal value."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Window:
        """Parse what `to_json` wrote."""
        raw = json.loads(line)
        for name in ("latency", "ttft", "relay", "gap"):
            raw[name] = Spread(**raw[name])
        raw["times"] = {name: CoreTimes(**value) for name, value in raw["times"].items()}
        return cls(**raw)
