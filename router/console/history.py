"""What became of requests over the last hour, in buckets of ten seconds, by SLO class.

Owns the rings and their bounds: memory is taken when a series begins and never grows. Must not know who looks. Fed once
for each request that ended; a reader pays for sums.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from router.record import RequestRecord
from router.timeline import STAGES

BUCKET_S: Final = 10
NUM_BUCKETS: Final = 360
MINUTE_BUCKETS: Final = 6
MAX_SERIES: Final = 128  # of single tenants, 45 KiB each; the one that has been quiet for longest makes room
MAX_REASONS: Final = 32  # of refusals, by series; there are fewer names of errors
_KEPT, _MISSED, _REFUSED, _OTHER, _TOKENS, _TIMED, _FIRST_STAGE = range(7)
_WIDTH: Final = _FIRST_STAGE + len(STAGES)
_NEVER: Final = -1


@dataclass(frozen=True, slots=True)
class Sums:
    """Requests that ended within some time."""

    kept: int = 0
    missed: int = 0  # with the refused
    refused: int = 0
    other: int = 0  # whose client is why nothing can be said
    output_tokens: int = 0
    timed: int = 0  # those whose time to the first token is known
    stages_us: tuple[int, ...] = (0,) * len(STAGES)  # of those, all together

    @property
    def attainment(self) -> float | None:
        """The share that kept their SLO; None when none ended that counts."""
        counted = self.kept + self.missed
        return self.kept / counted if counted else None


class _Series:
    """The buckets of one class; row i belongs to the slot `stamps[i]`, a number of BUCKET_S since the clock's zero.

    The slot under way is a list, which is cheaper to count in; it goes into its row when the next one begins.
    """

    __slots__ = ("_before", "_before_at", "open", "open_slot", "reasons", "rows", "stamps")

    def __init__(self) -> None:
        self.rows = array("q", bytes(8 * _WIDTH * NUM_BUCKETS))
        self.stamps = array("q", [_NEVER]) * NUM_BUCKETS
        self.open = [0] * _WIDTH
        self.open_slot = _NEVER
        self.reasons: dict[str, array[int]] = {}  # of refusals, one count for each row
        self._before = [0] * _WIDTH  # sums of an hour without the slot `_before_at`, the last of it
        self._before_at = _NEVER

    def add(self, slot: int, record: RequestRecord) -> None:
        """Count a request; one that comes after a later one counts with that."""
        if slot > self.open_slot:
            self._open(slot)
        row = self.open
        if record.kept:
            row[_KEPT] += 1
        elif record.kept is None:
            row[_OTHER] += 1
        else:
            row[_MISSED] += 1
            if record.refusal:
                row[_REFUSED] += 1
                self._refused(record.refusal)
        row[_TOKENS] += record.output_tokens
        line = record.timeline
        if line is not None and record.outcome == "ok" and line.ttft_us is not None:
            row[_TIMED] += 1
            stage = _FIRST_STAGE
            for length_us in line.stages_us:
                if length_us:
                    row[stage] += length_us
                stage += 1

    def _open(self, slot: int) -> None:
        begin = self.open_slot % NUM_BUCKETS * _WIDTH
        if self.open_slot != _NEVER:
            self.rows[begin : begin + _WIDTH] = array("q", self.open)
        at = slot % NUM_BUCKETS
        for counts in self.reasons.values():
            counts[at] = 0
        self.stamps[at] = self.open_slot = slot
        self.open = [0] * _WIDTH

    def _refused(self, reason: str) -> None:
        counts = self.reasons.get(reason)
        if counts is None:
            if len(self.reasons) >= MAX_REASONS:
                return
            counts = self.reasons[reason] = array("q", bytes(8 * NUM_BUCKETS))
        counts[self.open_slot % NUM_BUCKETS] += 1

    def row(self, slot: int) -> list[int]:
        """Give the counts of one slot."""
        if slot == self.open_slot:
            return self.open
        at = slot % NUM_BUCKETS
        if self.stamps[at] != slot:
            return [0] * _WIDTH
        return self.rows[at * _WIDTH : (at + 1) * _WIDTH].tolist()

    def sums(self, slot: int, buckets: int) -> list[int]:
        """Add up the latest `buckets`, of which `slot` is the last; an hour's earlier ones are added once a bucket."""
        if buckets < NUM_BUCKETS:
            return _added(self.row(slot - back) for back in range(buckets))
        if self._before_at != slot:
            self._before = _added(self.row(slot - back) for back in range(1, NUM_BUCKETS))
            self._before_at = slot
        return _added((self._before, self.row(slot)))

    def refusals(self, slot: int, buckets: int) -> Iterator[tuple[str, int]]:
        """Yield each reason with its count over the latest `buckets`."""
        live = [at for at in range(NUM_BUCKETS) if slot - buckets < self.stamps[at] <= slot]
        for reason, counts in self.reasons.items():
            yield reason, sum(counts[at] for at in live)


class History:
    """One series for each class, of all requests; and for each tenant and class, where requests have tenants."""

    def __init__(self) -> None:
        self._all: dict[str, _Series] = {}  # by class, of which there are few
        self._tenants: dict[tuple[str, str], _Series] = {}  # by tenant and class, MAX_SERIES at most

    def ended(self, record: RequestRecord) -> None:
        """Count a request whose record is complete."""
        ended_s, name = record.marks.ended_s, record.slo.name
        if ended_s is None:
            return
        slot = slot_of(ended_s)
        series = self._all.get(name)
        if series is None:
            series = self._all[name] = _Series()
        series.add(slot, record)
        if record.tenant:
            self._of_tenant(record.tenant, name).add(slot, record)

    def sums(self, tenant: str | None, slo_class: str, now_s: float, buckets: int) -> Sums:
        """Add up the requests of a class over the latest `buckets`, the one under way among them; None: of all."""
        series = self._series(tenant, slo_class)
        return Sums() if series is None else _sums(series.sums(slot_of(now_s), buckets))

    def rows(self, tenant: str | None, slo_class: str, now_s: float, buckets: int) -> list[list[int]]:
        """List [slot, kept, missed, refused] of the latest `buckets` in which something ended, oldest first."""
        series, slot = self._series(tenant, slo_class), slot_of(now_s)
        if series is None:
            return []
        slots = range(slot - buckets + 1, slot + 1)
        found = ([s, *series.row(s)[:_OTHER]] for s in slots if series.stamps[s % NUM_BUCKETS] == s)
        return [row for row in found if any(row[1:])]

    def refusals(self, tenant: str | None, slo_class: str, now_s: float, buckets: int) -> dict[str, int]:
        """Count the refusals of a class by the name of their error."""
        series = self._series(tenant, slo_class)
        return {} if series is None else {k: n for k, n in series.refusals(slot_of(now_s), buckets) if n}

    def _series(self, tenant: str | None, slo_class: str) -> _Series | None:
        return self._all.get(slo_class) if tenant is None else self._tenants.get((tenant, slo_class))

    def _of_tenant(self, tenant: str, slo_class: str) -> _Series:
        series = self._tenants.get((tenant, slo_class))
        if series is None:
            if len(self._tenants) >= MAX_SERIES:
                quietest = min(self._tenants, key=lambda key: self._tenants[key].open_slot)
                del self._tenants[quietest]
            series = self._tenants[tenant, slo_class] = _Series()
        return series


def slot_of(now_s: float) -> int:
    """Number the bucket of a moment."""
    return int(now_s // BUCKET_S)


def _added(rows: Iterator[list[int]] | tuple[list[int], ...]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _sums(row: list[int]) -> Sums:
    kept, missed, refused, other, output_tokens, timed = row[:_FIRST_STAGE]
    return Sums(kept, missed, refused, other, output_tokens, timed, tuple(row[_FIRST_STAGE:]))
