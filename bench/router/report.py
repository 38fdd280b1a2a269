"""The tables of a comparison, in Markdown.

Owns words and layout. Must not know how anything was measured.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence

from bench.router.figures import FIGURES, Figure, Over, Results
from bench.router.site import BATON, DIRECT, Cores


def report(results: Results, *, cores: Cores, seconds: float, notes: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines: where and how, figures, ratios, remarks."""
    placed = (
        "router, client and engines on any core"
        if cores.router is None
        else f"router alone on core {cores.router}, client and engines on core {cores.load}"
    )
    yield (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}; {placed}; "
        f"{results.num_rounds} rounds of {seconds:g} s a test, systems in turn; median [least..most] of the rounds."
    )
    yield from ("", *(f"- {note}" for note in notes))
    yield from figures_table(results)
    yield from ratios_table(results)
    remarks = results.remarks(DIRECT)
    if remarks:
        yield "\nTo be read with care:\n"
        yield from (f"- {line}" for line in remarks)


def figures_table(results: Results) -> Iterator[str]:
    """Yield one row a figure and one column a system."""
    yield f"\n| | {' | '.join(results.targets)} | asked |"
    yield "|---|" + "---|" * (len(results.targets) + 1)
    for figure in _present(results):
        cells = [_cell(figure, results, target) for target in results.targets]
        yield f"| {figure.label} | {' | '.join(cells)} | {figure.asked} |"
    memory = [f"{results.rss_mb(t):.0f} ({results.num_requests(t):,})" if t != DIRECT else "" for t in results.targets]
    yield f"| resident memory, MiB, at most (after requests) | {' | '.join(memory)} | |"


def ratios_table(results: Results) -> Iterator[str]:
    """Yield Baton's figures over each peer's, round by round."""
    peers = [target for target in results.targets if target not in (BATON, DIRECT)]
    if not peers or BATON not in results.targets:
        return
    yield f"\n| {BATON} over | {' | '.join(peers)} | better is |"
    yield "|---|" + "---|" * (len(peers) + 1)
    for figure in _present(results):
        ratios = [Over.of(results.ratios(figure, BATON, peer, DIRECT)) for peer in peers]
        cells = ["" if ratio is None else _spread(ratio, 2) for ratio in ratios]
        yield f"| {figure.label} | {' | '.join(cells)} | {'more' if figure.more_is_better else 'less'} |"


def _present(results: Results) -> list[Figure]:
    return [f for f in FIGURES if any(results.values(f, target, DIRECT) for target in results.targets)]


def _cell(figure: Figure, results: Results, target: str) -> str:
    spread = Over.of(list(results.values(figure, target, DIRECT).values()))
    of_router = "CPU" in figure.label or "added" in figure.label
    return "" if spread is None or (target == DIRECT and of_router) else _spread(spread, figure.digits)


def _spread(over: Over, digits: int) -> str:
    if over.low == over.high:
        return f"{over.median:,.{digits}f}"
    return f"{over.median:,.{digits}f} [{over.low:,.{digits}f}..{over.high:,.{digits}f}]"
