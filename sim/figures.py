"""Numbers as people read them, with no more digits than are known.

Owns rounding. Must not know what the numbers mean.
"""

from __future__ import annotations

import math

from sim.plan import Interval

_EXACT_DIGITS = 3  # of figures without an interval
_MOST_DECIMALS = 6
_LEAST_WIDTH = 5e-4  # of an interval, as a part of its middle, that is taken at its word


def decimals_known(interval: Interval) -> int:
    """Say how many decimals of the middle mean anything; negative: that many digits before the point do not.

    The rule of the Particle Data Group (Review of Particle Physics, introduction, section 5.3): two digits of the
    uncertainty if its leading ones are under 3.55, else one. Without a width, or one under half a thousandth, which no
    simulation knows, three digits of the figure itself.
    """
    half = (interval.high - interval.low) / 2.0
    if not (half > _LEAST_WIDTH / 2.0 * abs(interval.mid) and math.isfinite(half)):
        return _decimals_of(interval.mid, _EXACT_DIGITS)
    exponent = math.floor(math.log10(half))
    return min(_MOST_DECIMALS, -exponent + (1 if half / 10.0**exponent < 3.55 else 0))


def figure(value: float, decimals: int) -> str:
    """Write a number with that many decimals."""
    if not math.isfinite(value):
        return "-"
    rounded = round(value, decimals)
    return f"{rounded + 0.0:,.{max(0, decimals)}f}"  # plus zero: no "-0"


def plain(value: float, digits: int = _EXACT_DIGITS) -> str:
    """Write a number without an interval, with `digits` digits at most and no zeros at its end."""
    if not math.isfinite(value):
        return "-"
    text = figure(value, max(0, _decimals_of(value, digits)))
    return text.rstrip("0").rstrip(".") if "." in text else text


def floored(value: float, digits: int = _EXACT_DIGITS) -> str:
    """Write a number that must not be exceeded: rounded down to `digits` digits."""
    decimals = _decimals_of(value, digits)
    step = 10.0**-decimals
    return plain(math.floor(value / step * (1 + 1e-12)) * step, digits) if math.isfinite(value) else "-"


def with_interval(interval: Interval, *, scale: float = 1.0, unit: str = "") -> str:
    """Write `14.2 (13.1..15.0)`; one number alone where the interval has no width."""
    scaled = Interval(interval.low * scale, interval.mid * scale, interval.high * scale)
    decimals = decimals_known(scaled)
    middle = figure(scaled.mid, decimals) + unit
    low, high = figure(scaled.low, decimals), figure(scaled.high, decimals)
    return middle if low == high else f"{middle} ({low}..{high})"


def percent(interval: Interval) -> str:
    """Write a share as `93 % (91..95)`; in tenths only where it is known to less than a point either way."""
    low, mid, high = (100.0 * share for share in (interval.low, interval.mid, interval.high))
    decimals = 1 if high - low < 2.0 else 0
    ends = figure(low, decimals), figure(high, decimals)
    middle = f"{figure(mid, decimals)} %"
    return middle if ends[0] == ends[1] else f"{middle} ({ends[0]}..{ends[1]})"


def _decimals_of(value: float, digits: int) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    return min(_MOST_DECIMALS, digits - 1 - math.floor(math.log10(abs(value))))
