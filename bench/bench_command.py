"""`baton bench`: load an OpenAI-compatible endpoint and tell how it fared.

Owns flags, the order of runs and where results go. Must not know how load is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import uvloop

from bench.result_file import write_result
from bench.serving import flags
from bench.serving.console_block import console_block
from bench.serving.goodput_search import Found, Measured, OverSaturation, search
from bench.serving.progress import Progress
from bench.serving.proving import gentle_rate
from bench.serving.result import BenchResult, Json, result_json
from bench.serving.session import BenchSpec, at_rate, opened
from bench.serving.sweep import read_sweep
from bench.serving.target import Target, reached
from core.errors import ConfigError
from sim.figures import percent, plain

INTERRUPTED: Final = 130  # as a shell says of a program that SIGINT ended
_SEARCH_S: Final = 30.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `bench`."""
    parser.add_argument(
        "--url", "--base-url", help="the server (default: the router that runs from this checkout, else port 8000)"
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="start Baton with it, and stop it at the end")
    parser.add_argument("--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[], help="as for `up`")
    parser.add_argument("--sweep", metavar="FILE", type=Path, help="YAML of many benchmarks, see docs/benchmarking.md")
    parser.add_argument("--search-goodput", action="store_true", help="find the highest rate that keeps the promise")
    parser.add_argument("--search-s", type=float, default=_SEARCH_S, help="length of each rate's run (default 30)")
    parser.add_argument("--search-most", type=int, default=10, help="rates that are measured at most (default 10)")
    parser.add_argument("--label", help="name of the result")
    parser.add_argument("--save-result", metavar="FILE", type=Path, help="write the result as JSON, as vLLM names it")
    parser.add_argument("--save-detailed", action="store_true", help="with the times of every request")
    flags.add_endpoint_flags(parser)
    flags.add_load_flags(parser)
    flags.add_goodput_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Do `baton bench`; return 0, 1 if no request was answered, or 130 after Ctrl-C: what was measured is shown.

    Raises ConfigError for what is wrong, StartFailed for a system that does not start.
    """
    outcomes = _until_interrupted([options] if options.sweep is None else _sweep_options(options))
    values = [value for value, _, _ in outcomes]
    whole: Json = values[0] if options.sweep is None else list(values)
    if options.save_result is not None:
        write_result("--save-result", options.save_result, json.dumps(whole, allow_nan=False) + "\n")
    if options.as_json:
        sys.stdout.write(json.dumps(whole, indent=2, allow_nan=False) + "\n")
    if any(interrupted for _, _, interrupted in outcomes):
        return INTERRUPTED
    return 0 if all(answered for _, answered, _ in outcomes) else 1


def _until_interrupted(wanted: list[argparse.Namespace]) -> list[tuple[dict[str, Json], bool, bool]]:
    """Do one benchmark after the other; Ctrl-C ends the list, and what was measured stays."""
    found: list[tuple[dict[str, Json], bool, bool]] = []
    for each in wanted:
        try:
            found.append(_bench(each))
        except KeyboardInterrupt:
            if not found:
                raise
            value, answered, _ = found.pop()
            return [*found, (value, answered, True)]
        if found[-1][2]:
            break
    return found


def _sweep_options(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Parse every run's flags before the first of them starts."""
    parser = argparse.ArgumentParser(prog="sweep", add_help=False, allow_abbrev=False, exit_on_error=False)
    add_flags(parser)
    found = []
    for each in read_sweep(options.sweep):
        parsed = flags.with_flags(parser, each.words, file=options.sweep)
        parsed.as_json = options.as_json
        parsed.label = parsed.label or ", ".join(f"{k} {v}" for k, v in each.varied.items()) or "run"
        flags.spec_from(parsed)
        found.append(parsed)
    return found


def _bench(options: argparse.Namespace) -> tuple[dict[str, Json], bool, bool]:
    """Do one; return its value, whether anything was answered, and whether it was interrupted."""
    spec = flags.spec_from(options)
    if options.config is not None:
        target = Target("config", config=options.config, overrides=tuple(options.overrides))
    else:
        target = Target("url", flags.endpoint_from(options, options.url))
    with reached(target) as endpoint, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.search_goodput:
            found, results = runner.run(_search(Target("", endpoint), spec, options))
            lines = search_lines(found)
            value: dict[str, Json] = {
                "goodput_search": found_json(found),
                "runs": [result_json(result) for result in results],
            }
            answered = any(result.metrics.completed for result in results)
            interrupted = results[-1].is_interrupted
        else:
            result = runner.run(_once(Target("", endpoint), spec))
            lines, answered = console_block(result), result.metrics.completed > 0
            value = result_json(result, detailed=options.save_detailed)
            interrupted = result.is_interrupted
    if not options.as_json:
        head = [options.label] if options.sweep or options.label else []
        sys.stdout.write("\n".join([*head, *lines]) + "\n")
        sys.stdout.flush()
    return value, answered, interrupted


async def _once(target: Target, spec: BenchSpec) -> BenchResult:
    assert target.endpoint is not None
    async with opened(target.endpoint) as session, Progress(sys.stderr, spec.targets) as progress:
        return await session.run(spec, watch=progress)


async def _search(target: Target, spec: BenchSpec, options: argparse.Namespace) -> tuple[Found, list[BenchResult]]:
    """Measure rates until the highest that keeps the promise is known."""
    if not spec.targets:
        raise ConfigError("--search-goodput needs --goodput or --slo: the promise to keep")
    assert target.endpoint is not None
    results: list[BenchResult] = []
    async with opened(target.endpoint) as session:
        start = spec.shape.rate
        if not start < float("inf"):
            start = await gentle_rate(session, spec)

        async def measure_at(rate: float) -> Measured:
            # Each rate has prompts of its own: no prefix cache may remember those of another.
            one = at_rate(spec, rate, seconds=options.search_s, seed=spec.options.seed + len(results))
            async with Progress(sys.stderr, spec.targets) as progress:
                result = await session.run(one, watch=progress, is_hopeless=OverSaturation(spec.targets))
            results.append(result)
            return measured(rate, result)

        found = await search(
            measure_at, start, most=options.search_most, is_over=lambda: bool(results) and results[-1].is_interrupted
        )
        if not found.points:
            raise KeyboardInterrupt
        return found, results


def measured(rate: float, result: BenchResult) -> Measured:
    """Judge one rate by the class nearest to its promise."""
    classes = [each for each in result.metrics.classes if each.attainment.count]
    worst = min(classes, key=lambda each: each.attainment.mid - each.targets.attainment)
    is_kept = all(each.attainment.mid >= each.targets.attainment for each in classes)
    return Measured(rate, is_kept, worst.attainment.interval, result.metrics.request_goodput)


def search_lines(found: Found) -> list[str]:
    """Tell of a search."""
    lines = [f"{'rate':>8}  {'attainment':<16} {'goodput':>8}"]
    for point in found.points:
        lines.append(
            f"{plain(point.rate):>8}  {percent(point.attainment):<16} {plain(point.goodput):>8}"
            f"  {'kept' if point.is_kept else 'missed'}"
        )
    if found.low == 0.0:
        return [*lines, f"the promise is kept at no rate down to {plain(found.points[0].rate)} requests/s"]
    top = f"missed at {plain(found.high)}" if found.high < float("inf") else "no rate that was tried is too high"
    return [*lines, f"goodput: {plain(found.low)} requests/s ({top})"]


def found_json(found: Found) -> dict[str, Json]:
    """Write a search for programs."""
    points: list[Json] = [
        {
            "request_rate": point.rate,
            "kept": point.is_kept,
            "attainment": point.attainment.mid,
            "attainment_interval": [point.attainment.low, point.attainment.high],
            "request_goodput": point.goodput,
        }
        for point in found.points
    ]
    return {"kept_at": found.low, "missed_at": found.high if found.high < float("inf") else None, "points": points}
