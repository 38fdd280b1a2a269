"""A forecast of the arrival rate some minutes ahead, with the error that it has shown so far.

Owns level, trend and season. Level and trend are Holt's (damped: a trend does not go on for ever; Gardner and McKenzie,
1985); the season is a ratio for each part of the day, learnt from the day before. What was forecast is compared with
what came, and that error is told with each forecast. Must not know lengths or sizes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

_LEVEL_S: Final = 30.0  # time constants of level and trend
_TREND_S: Final = 300.0
_DAMPING_S: Final = 600.0  # a trend is believed for about so long
_SEASON_PARTS: Final = 96  # of a day: quarters of an hour
_SEASON_GAIN: Final = 0.5  # of a new day beside the days before
_ERROR_GAIN: Final = 0.05
_FIRST_ERROR: Final = 0.1  # relative, until forecasts have come due
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class RateForecast:
    """Requests a second, at the time within the horizon when it is most."""

    rate: float  # expected
    error: float  # standard deviation, as a share of it

    def high(self, deviations: float) -> float:
        """Return the rate that is exceeded by chance only, so many standard deviations above what is expected."""
        return self.rate * (1.0 + deviations * self.error)


class ArrivalForecast:
    """Follows one stream of arrivals; a stateful accountant."""

    def __init__(self) -> None:
        self._level = 0.0  # requests a second
        self._trend = 0.0  # of the level, a second
        self._seen_s = 0.0
        self._season = np.zeros(_SEASON_PARTS)  # requests a second; 0: not seen
        self._due: deque[tuple[float, float]] = deque()  # forecasts: when they are due, and what they said
        self._square = _FIRST_ERROR**2

    @property
    def rate(self) -> float:
        """The present rate."""
        return self._level

    def observe(self, arrived: int, interval_s: float, now_s: float) -> None:
        """Take in how many arrived in the interval that ends now."""
        if interval_s <= 0:
            return
        rate = arrived / interval_s
        if self._seen_s == 0.0:
            self._level = rate
        else:
            self._follow(rate, interval_s)
        self._seen_s += interval_s
        part = self._part(now_s)
        before = self._season[part]
        share = min(1.0, interval_s * _SEASON_PARTS / _DAY_S)  # of the part that this interval is
        self._season[part] = before + share * _SEASON_GAIN * (rate - before) if before else rate
        self._compare(now_s)

    def forecast(self, now_s: float, horizon_s: float) -> RateForecast:
        """Say how many a second there will be at most within the horizon."""
        ahead = [horizon_s * step / 4 for step in range(5)]
        rate = max(self._expected(now_s, ahead_s) for ahead_s in ahead)
        if not self._due or now_s > self._due[-1][0] - horizon_s:  # one for each observation
            self._due.append((now_s + horizon_s, self._expected(now_s, horizon_s)))
        # Counts of one time constant vary by chance alone (Poisson).
        by_chance = 1.0 / math.sqrt(max(1.0, self._level * _LEVEL_S))
        return RateForecast(rate, min(1.0, math.sqrt(self._square) + by_chance))

    def _follow(self, rate: float, interval_s: float) -> None:
        gain = 1.0 - math.exp(-interval_s / _LEVEL_S)
        expected = max(0.0, self._level + self._trend * interval_s)
        level = expected + gain * (rate - expected)
        slope = (level - self._level) / interval_s
        self._trend += (1.0 - math.exp(-interval_s / _TREND_S)) * (slope - self._trend)
        self._level = level

    def _expected(self, now_s: float, ahead_s: float) -> float:
        """By the trend, or by what came next the day before, if that day is known."""
        now, then = self._season[self._part(now_s)], self._season[self._part(now_s + ahead_s)]
        if self._seen_s >= _DAY_S and now > 0 and then > 0:
            return float(self._level * then / now)
        damped_s = _DAMPING_S * (1.0 - math.exp(-ahead_s / _DAMPING_S))
        return max(0.0, self._level + self._trend * damped_s)

    def _compare(self, now_s: float) -> None:
        while self._due and self._due[0][0] <= now_s:
            _, said = self._due.popleft()
            if self._level > 0:
                off = min(1.0, abs(said - self._level) / self._level)
                self._square += _ERROR_GAIN * (off * off - self._square)

    def _part(self, at_s: float) -> int:
        return int(at_s % _DAY_S * _SEASON_PARTS / _DAY_S)
