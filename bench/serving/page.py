"""A report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere; light and dark.

Owns the page's form. Must not know what is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from bench.goodput_plot import Palette, Panel, plotted

# Every colour is a variable of the page, so that one picture serves both looks.
PAGE_PALETTE: Final = Palette(
    ours="var(--ours)",
    others=("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)"),
    ink="currentColor",
    paper="none",
    axis="var(--axis)",
    grid="var(--grid)",
)
_STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#5c6066;--grid:#e4e6e9;--axis:#8b9097;
--ours:#0b57d0;--c1:#b3261e;--c2:#a46a00;--c3:#3a7d34;--c4:#7a4fb5;--good:#1e7a34;--bad:#b3261e;--open:#8a6100}
@media (prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e6e8eb;--soft:#a0a6ad;--grid:#2c3035;--axis:#777d85;
--ours:#7cacf8;--c1:#f2988f;--c2:#e0b25c;--c3:#7ecb8a;--c4:#c1a1f0;--good:#7ecb8a;--bad:#f2988f;--open:#e0b25c}}
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:62rem;
padding:1.5rem}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.1rem;margin:1.8rem 0 .5rem}p{margin:.4rem 0}
.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}
.good,.bad,.open{font-weight:600}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--grid);padding:.3rem .9rem .3rem 0;text-align:left;vertical-align:top}
th{font-weight:600;white-space:nowrap}svg{width:100%;min-width:32rem;height:auto}
svg.bar{height:1.6rem;min-width:0}
td.good,td.bad,td.open{min-width:11rem}ul{margin:.3rem 0;padding-left:1.2rem}
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell with a meaning: "good", "bad" or "open"; "" has none."""

    text: str
    mark: str = ""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """Put a page together; `lead` and the sections are HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{lead}" + "".join(sections) + "</body></html>\n"
    )


def paragraph(text: str, mark: str = "") -> str:
    """Write a paragraph of plain text."""
    return f'<p class="{mark}">{escape(text)}</p>' if mark else f"<p>{escape(text)}</p>"


def section(title: str, *parts: str) -> str:
    """Write a section of HTML parts."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """Write a table of plain text."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def listed(items: Sequence[str]) -> str:
    """Write a list of plain texts; nothing for none."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def figure(panels: Sequence[Panel], *, columns: int = 2) -> str:
    """Draw charts in the colours of the page."""
    return f'<div class="scroll">{plotted(panels, columns=columns, palette=PAGE_PALETTE)}</div>'


def bar(parts: Sequence[tuple[str, float]]) -> str:
    """Draw parts of a whole one behind the other, each with its name when the pointer rests on it."""
    total = sum(length for _, length in parts) or 1.0
    colours = (PAGE_PALETTE.ours, *PAGE_PALETTE.others)
    at, shapes = 0.0, []
    for number, (name, length) in enumerate(parts):
        if length > 0:
            place = f'x="{100 * at / total:.3f}" width="{100 * length / total:.3f}"'
            fill = f'fill="{colours[number % len(colours)]}"'
            shapes.append(f'<rect {place} height="6" {fill}><title>{escape(name)} {length:.1f} ms</title></rect>')
        at += length
    return f'<svg viewBox="0 0 100 6" preserveAspectRatio="none" class="bar">{"".join(shapes)}</svg>'


def _cell(value: str | Cell) -> str:
    if isinstance(value, Cell):
        return f'<td class="{value.mark}">{escape(value.text)}</td>' if value.mark else f"<td>{escape(value.text)}</td>"
    return f"<td>{escape(value)}</td>"
