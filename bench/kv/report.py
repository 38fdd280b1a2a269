"""The tables of a run, in Markdown.

Owns words and layout. Must not know how anything was measured.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence

from bench.kv.cache import Job
from bench.kv.figures import Results, verdicts
from bench.kv.systems import MEMCPY, PLAIN_GRPC, TCP2
from bench.router.figures import Over

_BASES = ((MEMCPY, "x memcpy"), (TCP2, "x 2 TCP streams"), (PLAIN_GRPC, "x plain gRPC"))


def report(results: Results, *, rounds: int, notes: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines: where and how, a table a size, overlap, what was asked, notes."""
    yield (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}; Llama-3-8B's KV (32 "
        f"layers, 64 KiB a layer and block of 16 tokens), scattered blocks of one process to scattered blocks of "
        f"another. {rounds} rounds, systems in turn, a fresh pair of processes each; median [least..most] of the "
        f"rounds' medians. GB = 10^9 bytes; CPU of both processes."
    )
    for tokens in results.sizes:
        yield from _sizes_table(results, tokens)
    yield from _overlap_table(results)
    yield from _asked_table(results)
    yield from ("", *(f"- {note}" for note in notes))


def _sizes_table(results: Results, tokens: int) -> Iterator[str]:
    yield f"\n{tokens:,} tokens, {Job(0, tokens, 0).num_bytes >> 20:,} MiB\n"
    yield f"| | ms | GB/s | CPU s/GB | {' | '.join(words for _, words in _BASES)} | others' cores |"
    yield "|---|---|---|---|" + "---|" * len(_BASES) + "---|"
    for system in results.systems:
        if not results.of(system, tokens):
            continue
        cells = [
            _cell(results.over(lambda taken: taken.median_s * 1e3, system, tokens), 2),
            _cell(results.over(lambda taken: taken.gb_per_s, system, tokens), 2),
            _cell(results.over(lambda taken: taken.cpu_s_per_gb, system, tokens), 2),
            *(_cell(results.ratio(system, base, tokens), 2) for base, _ in _BASES),
            _cell(results.over(lambda taken: taken.other_cores, system, tokens), 2),
        ]
        yield f"| {system} | {' | '.join(cells)} |"


def _overlap_table(results: Results) -> Iterator[str]:
    if not results.paces:
        return
    yield "\nLayer by layer: from the last layer computed to the decode side's verdict, ms; computing is a wait.\n"
    yield "| | tokens | ms a layer | exposed tail | at most | all at once | others' cores |"
    yield "|---|---|---|---|---|---|---|"
    for system in results.systems:
        for tokens, layer_ms in results.paces:
            tail = results.over(lambda taken: taken.median_s * 1e3, system, tokens, layer_ms)
            if tail is None:
                continue
            at_once = results.over(lambda taken: taken.median_s * 1e3, system, tokens)
            allowed_ms = results.allowed_tail_ms(system, tokens) or 0.0
            others = results.over(lambda taken: taken.other_cores, system, tokens, layer_ms)
            yield (
                f"| {system} | {tokens:,} | {layer_ms:g} | {_cell(tail, 2)} | {allowed_ms:.2f} | {_cell(at_once, 1)} "
                f"| {_cell(others, 2)} |"
            )


def _asked_table(results: Results) -> Iterator[str]:
    judged = list(verdicts(results))
    if not judged:
        return
    yield "\n| | asked | found | |"
    yield "|---|---|---|---|"
    for verdict in judged:
        word = "holds" if verdict.holds else "does not hold"
        yield f"| {verdict.label} | {verdict.asked} | {_cell(verdict.found, verdict.digits)} | {word} |"


def _cell(over: Over | None, digits: int) -> str:
    if over is None:
        return ""
    if over.low == over.high:
        return f"{over.median:,.{digits}f}"
    return f"{over.median:,.{digits}f} [{over.low:,.{digits}f}..{over.high:,.{digits}f}]"
