"""The picture of a plan: goodput against rate beside attainment against rate, in characters.

Owns the drawing. Must not know how points are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.figures import plain
from sim.outcome import Target
from sim.plan import RatePoint

_HEIGHT = 11  # rows of a panel
_PANEL = 37  # columns inside the axes of a panel
_GUTTER = 7  # columns for the numbers left of an axis


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of a picture."""

    marks: str  # one for each curve; the last is shared by all further ones
    vertical: str
    horizontal: str
    corner: str
    level: str  # where a promise lies


UNICODE = Glyphs("●○▲△■□", "│", "─", "└", "┈")
ASCII = Glyphs("*o+x#@", "|", "-", "+", ".")


def draw(curve: Sequence[RatePoint], targets: Sequence[Target], glyphs: Glyphs) -> list[str]:
    """Draw both panels side by side, 96 columns wide; nothing for fewer than two points.

    Left: requests per second that met their targets, against those offered. Right: the share by class, with a dotted
    line at each promise.
    """
    points = sorted(curve, key=lambda point: point.rate)
    if len(points) < 2 or points[0].rate == points[-1].rate:
        return []
    rates = [p.rate for p in points]
    top = max(p.goodput for p in points) or 1.0
    left = _Panel("goodput, requests/s", rates, 0.0, top)
    left.curve([p.goodput for p in points], glyphs.marks[0])
    floor = _floor(points, targets)
    right = _Panel("attainment, %", rates, floor, 100.0)
    for target in targets:
        right.level(100.0 * target.attainment, glyphs.level)
    for i in reversed(range(len(targets))):  # the first class on top
        right.curve([100.0 * p.attainment[i] for p in points], _mark(glyphs, i))
    pairs = zip(left.rows(glyphs), right.rows(glyphs), strict=True)
    lines = [f"{a:<{_GUTTER + _PANEL + 4}}{b}".rstrip() for a, b in pairs]
    keys = [f"{_mark(glyphs, i)} {t.name} (promised {plain(100 * t.attainment)} %)" for i, t in enumerate(targets)]
    return lines + _wrapped(keys, indent=_GUTTER + 2, width=98)


class _Panel:
    """One chart: a grid of characters under a title, with axes when it is written out."""

    def __init__(self, title: str, rates: Sequence[float], low: float, high: float) -> None:
        self._title = title
        self._rates = rates
        self._low, self._high = low, high
        self._grid = [[" "] * _PANEL for _ in range(_HEIGHT)]

    def level(self, value: float, mark: str) -> None:
        """Draw a horizontal line."""
        if self._low <= value <= self._high:
            self._grid[self._row(value)] = [mark] * _PANEL

    def curve(self, values: Sequence[float], mark: str) -> None:
        """Draw the straight lines through the points, one mark in each column."""
        first, last = self._rates[0], self._rates[-1]
        for column in range(_PANEL):
            rate = first + (last - first) * column / (_PANEL - 1)
            value = _between(rate, self._rates, values)
            if value >= self._low:
                self._grid[self._row(value)][column] = mark

    def rows(self, glyphs: Glyphs) -> list[str]:
        """Write title, grid with axes, and the rates under it."""
        lines = [" " * (_GUTTER + 1) + self._title]
        labels = {0: self._high, _HEIGHT // 2: (self._low + self._high) / 2, _HEIGHT - 1: self._low}
        for number, cells in enumerate(self._grid):
            label = plain(labels[number]) if number in labels else ""
            lines.append(f"{label:>{_GUTTER}}{glyphs.vertical}{''.join(cells)}")
        lines.append(" " * _GUTTER + glyphs.corner + glyphs.horizontal * _PANEL)
        first, middle, last = self._rates[0], (self._rates[0] + self._rates[-1]) / 2, self._rates[-1]
        width = _PANEL // 3
        under = f"{plain(first):<{width}}{plain(middle):^{_PANEL - 2 * width}}{plain(last):>{width}}"
        return [
            *lines,
            " " * (_GUTTER + 1) + under,
            " " * (_GUTTER + 1) + f"{'offered, requests/s':^{_PANEL}}".rstrip(),
        ]

    def _row(self, value: float) -> int:
        share = (value - self._low) / (self._high - self._low)
        return min(_HEIGHT - 1, max(0, round((1.0 - share) * (_HEIGHT - 1))))


def _between(x: float, at: Sequence[float], values: Sequence[float]) -> float:
    """Interpolate; `x` lies between the first and the last of `at`."""
    for i in range(1, len(at)):
        if x <= at[i]:
            width = at[i] - at[i - 1]
            share = (x - at[i - 1]) / width if width > 0 else 1.0
            return values[i - 1] + share * (values[i] - values[i - 1])
    return values[-1]


def _floor(points: Sequence[RatePoint], targets: Sequence[Target]) -> float:
    """Choose where the axis of shares begins: a multiple of ten under all points and promises, 50 at most."""
    least = min(min(p.attainment) for p in points)
    least = min(least, *(t.attainment for t in targets)) if targets else least
    return float(min(50, int(least * 10) * 10))


def _mark(glyphs: Glyphs, number: int) -> str:
    return glyphs.marks[min(number, len(glyphs.marks) - 1)]


def _wrapped(words: Sequence[str], *, indent: int, width: int) -> list[str]:
    """Set words three blanks apart, on as many lines as they need."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 3 + len(word) <= width:
            lines[-1] += "   " + word
        else:
            lines.append(" " * indent + word)
    return lines
