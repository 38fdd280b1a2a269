"""Which candidates no other one beats. Owns the order only."""

from __future__ import annotations

from collections.abc import Iterable

from sim.plan import Candidate

_SAME_ATTAINMENT = 0.01  # shares of a simulated sample closer than this count as equal


def front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return those that no other one equals in goodput, attainment and price while it beats one, by goodput."""
    distinct = tuple(dict.fromkeys(candidates))
    kept = (c for c in distinct if not any(_beats(other, c) for other in distinct))
    return tuple(sorted(kept, key=lambda c: (c.goodput.mid, c.price_per_hour)))


def _beats(a: Candidate, b: Candidate) -> bool:
    pairs = [(x.mid, y.mid) for x, y in zip(a.attainment, b.attainment, strict=True)]
    as_good = (
        a.goodput.mid >= b.goodput.mid
        and a.price_per_hour <= b.price_per_hour
        and all(x >= y - _SAME_ATTAINMENT for x, y in pairs)
    )
    better = (
        a.goodput.mid > b.goodput.mid
        or a.price_per_hour < b.price_per_hour
        or any(x > y + _SAME_ATTAINMENT for x, y in pairs)
    )
    return as_good and better
