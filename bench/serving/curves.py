"""The curves of a run: distributions, and attainment as the targets are loosened or tightened.

Owns the points. The second is the right half of the figures of the DistServe paper (Zhong et al., OSDI 2024, section 6:
both targets times one scale); the first half, against the rate, needs several runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from bench.goodput_plot import Curve
from bench.serving.metrics import ClassTargets, Targets, kept_series, targets_of
from bench.serving.statistics import Values
from bench.serving.timing import Timing

SCALES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
_CDF_POINTS: Final = 60
_CDF_TOP: Final = 0.99  # beyond, one value stretches the picture for all


def cdf(name: str, values: Values, *, is_ours: bool = False) -> Curve:
    """Give the share of values up to each, in percent."""
    shares = np.linspace(0.0, _CDF_TOP, _CDF_POINTS)
    points = zip(np.quantile(values, shares).tolist(), (100 * shares).tolist(), strict=True) if len(values) else ()
    return Curve(name, tuple(points), is_ours)


def against_scale(name: str, timings: Sequence[Timing], targets: Targets, *, is_ours: bool = False) -> Curve:
    """Give the attainment in percent with both targets times each scale."""
    points = []
    for scale in SCALES:
        kept = kept_series(timings, targets, scale)
        points.append((scale, 100.0 * sum(kept) / len(kept) if kept else 0.0))
    return Curve(name, tuple(points), is_ours)


def of_class(timings: Sequence[Timing], name: str, targets: ClassTargets) -> list[Timing]:
    """Take the requests that are measured by the targets called `name`."""
    return [t for t in timings if targets_of(t, targets) is targets[name]]
