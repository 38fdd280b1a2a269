"""`baton compare A B`: ask two systems the same, in turns, and say by how much they differ and how sure that is.

Owns flags and what the two sides are. Must not know statistics.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.bench_command import INTERRUPTED
from bench.result_file import write_result
from bench.serving import flags
from bench.serving.comparison import compare
from bench.serving.comparison_report import AtRate, Comparison, comparison_json, comparison_lines, comparison_page
from bench.serving.segments import run_in_turns
from bench.serving.session import BenchSpec, at_rate
from bench.serving.target import ONE_POOL, Target
from core.config.load import load_config
from core.errors import ConfigError

_SEGMENTS: Final = 4
_REQUESTS: Final = 100  # of one segment


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `compare`."""
    parser.add_argument("sides", metavar="A B", nargs="*", help="URLs of two servers that run")
    parser.add_argument("--config", metavar="FILE", type=Path, help="start Baton with it, as A")
    parser.add_argument("--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[], help="for A")
    parser.add_argument(
        "--against", metavar="FILE", help=f"start Baton with it, as B; {ONE_POOL}: one plain vLLM with A's devices"
    )
    parser.add_argument(
        "--set-against", metavar="KEY=VALUE", action="append", default=[], help="for B (without FILE: of A's file)"
    )
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what to call them")
    parser.add_argument("--gpus", nargs=2, type=int, metavar=("A", "B"), help="GPUs of each, for goodput per GPU")
    parser.add_argument("--segments", type=int, default=_SEGMENTS, help=f"turns of each side (default {_SEGMENTS})")
    parser.add_argument("--rates", type=float, nargs="+", metavar="RATE", help="compare at each, for the curves")
    parser.add_argument("--rate-s", type=float, default=20.0, help="with --rates: length of a turn (default 20)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with pictures")
    flags.add_endpoint_flags(parser)
    flags.add_load_flags(parser, requests=_REQUESTS)
    flags.add_goodput_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Do `baton compare`; return 0, or 130 after Ctrl-C, when what both sides have served is compared.

    Raises ConfigError for what is wrong, StartFailed for a system that does not start.
    """
    sides, spec = sides_from(options), flags.spec_from(options)
    if not spec.targets and options.config is not None:
        config = load_config(options.config, overrides=options.overrides, environ=os.environ)
        spec = replace(spec, targets=flags.class_targets(config))
    if options.segments < 2:
        raise ConfigError("--segments must be at least 2, so that each side is first once")
    if options.html is not None:
        write_result("--html", options.html, "")  # before minutes are spent
    for side in sides:
        if side.config is not None:  # its errors are told before the other side is started
            load_config(side.config, overrides=side.overrides, environ=os.environ)
    specs = _specs(spec, options)
    both = run_in_turns(sides, specs, options.segments)
    points = tuple(
        AtRate(each.shape.rate, *pair, compare(pair[0].run.timings, pair[1].run.timings, each.targets))
        for each, pair in zip(specs, both.sides, strict=True)
        if pair is not None
    )
    found = Comparison(points, spec.targets, _traffic(spec), tuple(options.gpus or (None, None)))
    if both.is_interrupted:
        sys.stderr.write("interrupted: only the parts that both sides have served are compared\n")
    if options.html is not None:
        write_result("--html", options.html, comparison_page(found))
    if options.as_json:
        sys.stdout.write(json.dumps(comparison_json(found), indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write("\n".join(comparison_lines(found)) + "\n")
    return INTERRUPTED if both.is_interrupted else 0


def sides_from(options: argparse.Namespace) -> tuple[Target, Target]:
    """Find out what is compared. Raises ConfigError."""
    names = options.names or (None, None)
    if options.config is None:
        if len(options.sides) != 2:
            raise ConfigError("name two servers: `baton compare URL URL`, or `--config FILE --against FILE|one-pool`")
        first, second = (Target(url, flags.endpoint_from(options, url)) for url in options.sides)
    else:
        if options.sides or (options.against is None and not options.set_against):
            raise ConfigError(f"with --config, name what it is compared with: --against FILE|{ONE_POOL}")
        overrides = tuple(options.overrides)
        first = Target(_name(str(options.config), overrides), config=options.config, overrides=overrides)
        second = _second(options, first)
    if not names[0] and first.name == second.name:
        names = (f"{first.name} (A)", f"{second.name} (B)")
    return replace(first, name=names[0] or first.name), replace(second, name=names[1] or second.name)


def _second(options: argparse.Namespace, first: Target) -> Target:
    own = tuple(options.set_against)
    if options.against == ONE_POOL:
        return Target("one pool of plain vLLM", config=first.config, overrides=first.overrides, is_one_pool=True)
    if options.against is None:
        return Target(_name(str(first.config), own), config=first.config, overrides=(*first.overrides, *own))
    return Target(_name(options.against, own), config=Path(options.against), overrides=own)


def _name(file: str, overrides: tuple[str, ...]) -> str:
    return ", ".join([file, *overrides])


def _specs(spec: BenchSpec, options: argparse.Namespace) -> list[BenchSpec]:
    if not options.rates:
        return [spec]
    return [
        at_rate(spec, rate, seconds=options.rate_s, seed=spec.options.seed + 100 * number)
        for number, rate in enumerate(sorted(options.rates))
    ]


def _traffic(spec: BenchSpec) -> str:
    data, shape = spec.dataset, spec.shape
    what = f"{data.name} {data.path}" if data.path else data.name
    if data.name == "random":
        what += f", {data.input_tokens} tokens in, {data.output_tokens} out"
    if not shape.is_open:
        what += f", {shape.max_concurrency} clients"
    elif math.isfinite(shape.rate) and shape.burstiness != 1.0 and not shape.keeps_times:
        what += f", burstiness {shape.burstiness:g}"
    return what
