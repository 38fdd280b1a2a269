"""The picture of a plan: attainment by class and goodput against the rate. Owns which rates are shown."""

from __future__ import annotations

import numpy as np

from sim.plan import RatePoint
from sim.search.goodput import Judge
from sim.search.race import Found

_LONG = 5_000  # requests from which on the picture shows the part that placements are compared by
_SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.4)  # times the goodput


def curve_of(judge: Judge, found: Found, wanted: float | None) -> tuple[RatePoint, ...]:
    """Return points by rate, the goodput and the rate asked for among them."""
    rates = {found.rate * share for share in _SHARES} | ({wanted} if wanted else set())
    classes = judge.scenario.workloads[0].classes()
    weights = np.bincount(classes, minlength=len(judge.scenario.targets)) / max(1, len(classes))
    whole = len(classes) < _LONG
    points = []
    for rate in sorted(rates):
        attained = judge.attainment(found.placement, rate, whole=whole)
        points.append(RatePoint(rate, attained, rate * float(weights @ np.array(attained))))
    return tuple(points)
