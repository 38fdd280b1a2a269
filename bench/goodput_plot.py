"""Line charts, of goodput against offered rate and the like, as SVG text that needs no library and no font.

Owns the drawing. Must not know what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 230, 150  # of the axes of a panel
_LEFT, _TOP, _RIGHT, _BOTTOM = 34, 26, 12, 34  # about them
_NAME_WIDTH, _NAME_HEIGHT = 150, 18  # of one name in the legend
_DASHES: Final = ("", "6 3", "2 2", "8 2 2 2", "4 4", "1 3")


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a picture, as SVG or CSS has them."""

    ours: str = "#0b57d0"
    others: tuple[str, ...] = ("#b3261e", "#a46a00", "#3a7d34", "#7a4fb5", "#00828a", "#8a8a8a")
    ink: str = "#222"
    paper: str = "#fff"
    axis: str = "#888"
    grid: str = "#e4e4e4"


LIGHT: Final = Palette()


@dataclass(frozen=True, slots=True)
class Curve:
    """One policy, or system: points by rising x."""

    name: str
    points: Sequence[tuple[float, float]]
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart."""

    title: str
    curves: tuple[Curve, ...]
    x_title: str = "offered"
    levels: tuple[float, ...] = ()  # y of horizontal lines: what was promised


def plotted(panels: Sequence[Panel], *, columns: int, palette: Palette = LIGHT) -> str:
    """Draw panels in rows under one legend; every curve name has one look in all of them."""
    names = dict.fromkeys(curve.name for panel in panels for curve in panel.curves)
    ours = {curve.name for panel in panels for curve in panel.curves if curve.is_ours}
    others = [name for name in names if name not in ours]
    looks = {
        name: _look(others.index(name), palette) if name in others else f'stroke="{palette.ours}" stroke-width="2.4"'
        for name in names
    }
    step_x, step_y = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    columns = min(columns, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    width = columns * step_x
    names_per_row = max(1, (width - _LEFT) // _NAME_WIDTH)
    legend = 6 + _NAME_HEIGHT * -(-len(looks) // names_per_row)
    height = legend + rows * step_y
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="10" fill="{palette.ink}">',
        f'<rect width="{width}" height="{height}" fill="{palette.paper}"/>',
        *_legend(looks, names_per_row),
    ]
    for number, panel in enumerate(panels):
        x, y = number % columns * step_x + _LEFT, legend + number // columns * step_y + _TOP
        lines += [f'<g transform="translate({x} {y})">', *_panel(panel, looks, palette), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _look(number: int, palette: Palette) -> str:
    dash = _DASHES[number % len(_DASHES)]
    return f'stroke="{palette.others[number % len(palette.others)]}" stroke-width="1.3"' + (
        f' stroke-dasharray="{dash}"' if dash else ""
    )


def _legend(looks: dict[str, str], per_row: int) -> Iterator[str]:
    for number, (name, look) in enumerate(looks.items()):
        x, y = _LEFT + number % per_row * _NAME_WIDTH, 14 + number // per_row * _NAME_HEIGHT
        yield f'<path d="M{x} {y}h22" fill="none" {look}/>'
        yield f'<text x="{x + 27}" y="{y + 3}">{escape(name)}</text>'


def _panel(panel: Panel, looks: dict[str, str], palette: Palette) -> Iterator[str]:
    points = [point for curve in panel.curves for point in curve.points]
    right = max((x for x, _ in points), default=1.0) or 1.0
    top = 1.1 * max([*(y for _, y in points), *panel.levels], default=1.0) or 1.0
    yield f'<text y="-8">{escape(panel.title)}</text>'
    yield f'<path d="M0 0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="{palette.axis}"/>'
    for x in _ticks(right):
        at = _WIDTH * x / right
        yield f'<text x="{at:.0f}" y="{_HEIGHT + 12}" text-anchor="middle">{x:g}</text>'
    for y in _ticks(top):
        at = _HEIGHT * (1 - y / top)
        yield f'<path d="M0 {at:.1f}H{_WIDTH}" stroke="{palette.grid}"/>'
        yield f'<text x="-4" y="{at + 3:.0f}" text-anchor="end">{y:g}</text>'
    yield f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT + 25}" text-anchor="middle">{escape(panel.x_title)}</text>'
    for level in panel.levels:
        at = _HEIGHT * (1 - level / top)
        yield f'<path d="M0 {at:.1f}H{_WIDTH}" stroke="{palette.axis}" stroke-dasharray="3 3"/>'
    for curve in reversed(panel.curves):  # the first on top
        path = " ".join(f"{_WIDTH * x / right:.1f},{_HEIGHT * (1 - y / top):.1f}" for x, y in curve.points)
        yield f'<polyline points="{path}" fill="none" {looks[curve.name]}/>'


def _ticks(top: float) -> list[float]:
    """Choose about four round numbers up to `top`."""
    coarse = (scale * 10.0**power for power in range(9) for scale in (2, 5, 10))
    step = next((s for s in (0.1, 0.2, 0.25, 0.5, 1.0, *coarse) if top / s < 6), top)
    return [round(step * i, 6) for i in range(int(top / step + 1e-9) + 1)]
