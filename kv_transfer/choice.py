"""Which transport a sender uses for one peer: measured, explored rarely, set aside when it fails.

Owns counts and speeds of the transports that one peer offers. Pure: the clock is handed in, nothing is random. Must not
know what a transport is, only its name.

`auto` takes the transport whose median time is least, for large and for small hand-overs apart: a large one is judged
by its bytes a second, a small one by its time. One that has not been measured is tried `TRIALS` times, one hand-over of
`TRIAL_EVERY`; one that is slower is tried again at a pace that gives it about 1/`RETRY_EVERY` of the time, so that a
network that has changed is found out while looking for it costs next to nothing.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from statistics import median
from typing import Final

AUTO: Final = "auto"
FALL_BACK: Final = "grpc"  # what a hand-over goes on with when the named transport failed in it
PREFERENCE: Final = ("nccl", "shm", "nixl", "tcp", "grpc")  # of those that are not measured, by the bench of the peers
LARGE_BYTES: Final = 1 << 20  # below, the fixed cost of a hand-over outweighs its bytes
WINDOW: Final = 9  # measures that count: the median holds against 4 that are off
TRIALS: Final = 3  # of a transport that is new, before it is left to the retries; WINDOW when it may be faster
TRIAL_EVERY: Final = 8  # hand-overs
RETRY_EVERY: Final = 64  # hand-overs, times how many times slower it was
MAX_SLOWER: Final = 64.0  # beyond, a slower one is not retried less often
MARGIN: Final = 1.15  # by how much another must be faster to take over
SETTLE: Final = 16  # hand-overs that a choice stays, whatever the speeds say
FIRST_REST_S: Final = 1.0  # after a failure; doubles with each further one
MAX_REST_S: Final = 60.0
LAST_RESORT_FAILURES: Final = 3  # in a row, up to which a peer's only way is tried although it has just failed


class Size(enum.Enum):
    """Hand-overs that are compared with each other."""

    SMALL = "small"
    LARGE = "large"

    @classmethod
    def of(cls, num_bytes: int) -> Size:
        """Classify a hand-over."""
        return cls.LARGE if num_bytes >= LARGE_BYTES else cls.SMALL


@dataclass(slots=True)
class _Measures:
    """What one transport took for hand-overs of one size."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # a MiB if large, a hand-over if small
    trials: int = 0  # hand-overs given to it only to measure it
    asked_at: int = 0  # number of the latest of those

    @property
    def typical_s(self) -> float | None:
        return median(self.seconds) if self.seconds else None


@dataclass(slots=True)
class _Way:
    """One transport that the peer offers."""

    measures: dict[Size, _Measures] = field(default_factory=lambda: {size: _Measures() for size in Size})
    failures: int = 0  # in a row
    rests_until_s: float = 0.0
    is_last_resort: bool = False  # it was taken while it rested: its next failure counts


@dataclass(slots=True)
class _Favourite:
    """What hand-overs of one size go over at present."""

    name: str
    since: int  # number of the hand-over that it was first chosen for


@dataclass(frozen=True, slots=True)
class WayReport:
    """One transport to one peer, for people."""

    name: str
    is_favourite: bool  # of hand-overs of the size that is usual
    large_bytes_per_s: float | None  # None: not measured
    small_s: float | None
    failures: int  # in a row
    rests_s: float  # for how long it is still set aside


class Choice:
    """Chooses for one peer; forgets nothing while the peer stays the same process."""

    def __init__(self, offered: Collection[str], *, clock_s: Callable[[], float], transport: str = AUTO) -> None:
        self._clock_s = clock_s
        self._named = None if transport == AUTO else transport
        order = {name: place for place, name in enumerate(PREFERENCE)}
        ranked = sorted(offered, key=lambda name: (order.get(name, len(order)), name))
        self._ways = {name: _Way() for name in ranked}  # most preferred first
        self._favourites: dict[Size, _Favourite] = {}  # none of a size before its first hand-over
        self._picks = dict.fromkeys(Size, 0)
        self._recent: deque[Size] = deque(maxlen=WINDOW)  # sizes of the latest hand-overs

    def pick(self, *, excluded: Collection[str] = (), num_bytes: int | None = None) -> str | None:
        """Name the transport for one attempt at a hand-over of `num_bytes`; None when there is none to be had.

        `excluded` have failed in this hand-over. A named transport is never set aside: who names one means it.
        """
        if self._named is not None:
            wanted = FALL_BACK if self._named in excluded else self._named
            return wanted if wanted in self._ways and wanted not in excluded else None
        size = self._usual_size() if num_bytes is None else Size.of(num_bytes)
        self._picks[size] += 1
        usable = [name for name in self._ways if name not in excluded]
        awake = [name for name in usable if self._rest_s(name) <= 0]
        if not awake:
            return self._last_resort(usable)
        favourite = self._favourite(size, awake)
        return self._trial(size, awake, favourite) or favourite

    def done(self, name: str, num_bytes: int, seconds: float) -> None:
        """Note that a hand-over landed; `seconds` without the time it waited for prefill to compute."""
        way = self._ways.get(name)
        if way is None:
            return
        way.failures, way.rests_until_s, way.is_last_resort = 0, 0.0, False
        size = Size.of(num_bytes)
        self._recent.append(size)
        units = num_bytes / LARGE_BYTES if size is Size.LARGE else 1
        way.measures[size].seconds.append(max(seconds, 1e-9) / units)

    def failed(self, name: str) -> None:
        """Set a transport aside, for 1 s and twice as long each time up to 60 s, until it works again.

        Hand-overs that were under way together fail together: they count once.
        """
        way = self._ways.get(name)
        if way is None or (self._rest_s(name) > 0 and not way.is_last_resort):
            return
        way.is_last_resort = False
        way.failures += 1
        rest_s = min(MAX_REST_S, FIRST_REST_S * 2.0 ** min(way.failures - 1, 32))
        way.rests_until_s = self._clock_s() + rest_s

    def reports(self) -> tuple[WayReport, ...]:
        """Describe every transport, most preferred first."""
        favourite = self._favourites.get(self._usual_size())
        return tuple(
            WayReport(
                name,
                name == self._named or (favourite is not None and favourite.name == name),
                None if (large_s := way.measures[Size.LARGE].typical_s) is None else LARGE_BYTES / large_s,
                way.measures[Size.SMALL].typical_s,
                way.failures,
                max(0.0, self._rest_s(name)),
            )
            for name, way in self._ways.items()
        )

    def _usual_size(self) -> Size:
        large = sum(size is Size.LARGE for size in self._recent)
        return Size.LARGE if 2 * large >= len(self._recent) else Size.SMALL

    def _rest_s(self, name: str) -> float:
        return self._ways[name].rests_until_s - self._clock_s()

    def _last_resort(self, usable: list[str]) -> str | None:
        """Take what works soonest again, unless it has failed often: one fault of its only way must not cut a pair."""
        hopeful = [name for name in usable if self._ways[name].failures < LAST_RESORT_FAILURES]
        if not hopeful:
            return None
        name = min(hopeful, key=self._rest_s)
        self._ways[name].is_last_resort = True
        return name

    def _favourite(self, size: Size, awake: list[str]) -> str:
        """Say what hand-overs go over; another takes over when it is clearly faster and the choice has settled."""
        held = self._favourites.get(size)
        typical_s = {name: s for name in awake if (s := self._ways[name].measures[size].typical_s) is not None}
        best = min(typical_s, key=typical_s.__getitem__) if typical_s else awake[0]
        if held is None or held.name not in awake:
            self._favourites[size] = _Favourite(best, self._picks[size])
            return best
        held_s = typical_s.get(held.name)
        is_faster = held_s is not None and best in typical_s and typical_s[best] * MARGIN < held_s
        if is_faster and self._picks[size] - held.since >= SETTLE:
            self._favourites[size] = _Favourite(best, self._picks[size])
            self._ways[held.name].measures[size].trials = 0  # bad luck, or is it slow? Looked at again soon
            return best
        return held.name

    def _trial(self, size: Size, awake: list[str], favourite: str) -> str | None:
        """Name a transport that this hand-over shall measure; None for nearly all of them."""
        count = self._picks[size]
        favourite_s = self._ways[favourite].measures[size].typical_s
        if favourite_s is None:
            return None  # it is being measured itself
        due = []
        for name in awake:
            measures = self._ways[name].measures[size]
            # By its best measure: a few unlucky ones must not keep a fast transport from being tried again soon.
            slower = min(measures.seconds, default=0.0) / favourite_s
            wanted = WINDOW if slower * MARGIN < 1 else TRIALS
            pace = TRIAL_EVERY if measures.trials < wanted else RETRY_EVERY * min(MAX_SLOWER, max(1.0, slower))
            if name != favourite and count - measures.asked_at >= pace:
                due.append(name)
        if not due or count % TRIAL_EVERY:
            return None
        name = min(due, key=lambda name: self._ways[name].measures[size].asked_at)
        measures = self._ways[name].measures[size]
        measures.trials += 1
        measures.asked_at = count
        return name
