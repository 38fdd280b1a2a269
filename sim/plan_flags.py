"""The flags of `baton plan`.

Owns their names, help and ranges, and what they become. Loads nothing heavy: it is read for every `--help`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.questions import PlanFlags

MOST_GPUS, MOST_RATE, MOST_PRICE = 65536, 1e7, 1e6  # as plan.gpus, .rate and .price_per_hour (core.config.models)
_MOST_REQUESTS = 1_000_000


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag that `plan` has beyond the configuration."""
    say = parser.add_argument_group("devices (else as in the section `plan` of the file)").add_argument
    say("--gpu", metavar="NAME", action="append", default=[], help="kind of GPU; again for a second kind")
    say("--profile", metavar="FILE", action="append", default=[], help="what `baton profile` measured; or --gpu")
    say("--gpus", metavar="N", type=_gpus, action="append", default=[], help="how many, once for each kind")
    say("--gpus-per-node", metavar="N", type=_count, help="devices of one machine (default: all, 8 at most)")
    say("--price", metavar="X", type=_price, action="append", default=[], help="price of one for an hour")
    say("--bandwidth", metavar="GBIT_S", type=_above_zero, help="of KV between machines (default: as measured, gRPC)")
    say("--inner-bandwidth", metavar="GBIT_S", type=_above_zero, help="of KV inside a machine (default: the same)")
    say = parser.add_argument_group("traffic").add_argument
    say("--trace", metavar="FILE", help="recorded: Azure CSV, Mooncake JSONL, `vllm bench serve` JSON; .gz too")
    say("--workload", metavar="NAME", help="made up: chat, code, summarize, agent or mixed (default: chat)")
    say("--rate", metavar="R", type=_rate, help="requests per second to carry (default: as many as possible)")
    say("--requests", metavar="N", type=_requests, help="how many to simulate (default: 3000, of a trace 6000)")
    say("--burstiness", metavar="CV", type=_above_zero, help="cv of the gaps between made-up arrivals; 1 is Poisson")
    say("--share", metavar="CLASS=PART", action="append", default=[], help="part of the requests that is of a class")
    say("--seed", metavar="N", type=_seed, default=0, help="of all chance (default: 0)")
    say = parser.add_argument_group("answer").add_argument
    words = "judge only this placement: prefill, decode, tp, pp, chunk, seqs, whole_below, mode, admission"
    say("--what-if", metavar="KEY=VALUE", action="append", default=[], help=words)
    say("--write", metavar="FILE", type=Path, help="write the configuration with the plan in it")


def plan_flags(options: argparse.Namespace) -> PlanFlags:
    """Turn parsed flags into what the planner takes."""
    from sim.device_groups import DeviceFlags
    from sim.questions import PlanFlags

    return PlanFlags(
        devices=DeviceFlags(
            profiles=tuple(options.profile),
            kinds=tuple(options.gpu),
            counts=tuple(options.gpus),
            prices=tuple(options.price),
            per_node=options.gpus_per_node,
            inner_gbit_s=options.inner_bandwidth,
            outer_gbit_s=options.bandwidth,
        ),
        trace=options.trace,
        workload=options.workload,
        rate=options.rate,
        num_requests=options.requests,
        gap_cv=options.burstiness,
        shares=tuple(options.share),
        what_if=tuple(options.what_if),
        seed=options.seed,
    )


def _above_zero(text: str, most: float = math.inf) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    if value > most:
        raise argparse.ArgumentTypeError(f"{text} is more than {most:,.0f}")
    return value


def _rate(text: str) -> float:
    return _above_zero(text, MOST_RATE)


def _price(text: str) -> float:
    return _above_zero(text, MOST_PRICE)


def _count(text: str, most: float = math.inf) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    if value > most:
        raise argparse.ArgumentTypeError(f"{text} is more than {most:,.0f}")
    return value


def _gpus(text: str) -> int:
    return _count(text, MOST_GPUS)


def _requests(text: str) -> int:
    return _count(text, _MOST_REQUESTS)


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


# argparse says "invalid number value: 'x'".
_above_zero.__name__ = _rate.__name__ = _price.__name__ = "number"
_count.__name__ = _gpus.__name__ = _requests.__name__ = _seed.__name__ = "whole number"
