"""The flags of a benchmark, named as those of `vllm bench serve` where it has the same, and what they mean.

Owns names, help and their reading. Must not run anything.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.serving.datasets import NAMES, RANDOM, TRACE, DatasetSpec
from bench.serving.endpoint import KEY_VARIABLE, Endpoint, api_key, endpoint, trust
from bench.serving.load_run import RunOptions
from bench.serving.load_shape import LoadShape
from bench.serving.metrics import PERCENTILES, ClassTargets, Targets, parse_goodput
from bench.serving.session import OPENAI, OPENAI_CHAT, BenchSpec
from cluster.front import front_of
from cluster.state import StateDir
from core.config.load import load_config
from core.config.models import BatonConfig
from core.errors import ConfigError
from sim.generators import RECIPES

DEFAULT_URL: Final = "http://127.0.0.1:8000"
DEFAULT_REQUESTS: Final = 1000


def add_endpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add how servers are reached."""
    group = parser.add_argument_group("endpoint")
    group.add_argument("--ca", metavar="FILE", type=Path, help="whom to trust of an https server: certificates, PEM")
    group.add_argument("--insecure", action="store_true", help="trust any certificate")
    group.add_argument("--key-file", metavar="FILE", type=Path, help=f"file with the API key (default: {KEY_VARIABLE})")
    group.add_argument("--header", metavar="NAME=VALUE", action="append", default=[], help="one more header")
    group.add_argument("--backend", choices=(OPENAI, OPENAI_CHAT), default=OPENAI, help="completions or chat")
    group.add_argument("--model", help="name the server knows it by (default: the first it lists)")
    group.add_argument("--tokenizer", metavar="FOLDER", type=Path, help="count prompts by it (default: by the server)")
    group.add_argument("--timeout-s", type=float, default=600.0, help="longest time of one request (default 600)")


def add_load_flags(parser: argparse.ArgumentParser, *, requests: int = DEFAULT_REQUESTS) -> None:
    """Add what is asked and when."""
    data = parser.add_argument_group("what is asked")
    data.add_argument("--dataset-name", choices=NAMES, default=RANDOM, help="default: random lengths")
    data.add_argument("--dataset-path", metavar="FILE", type=Path, help="of trace, sharegpt and custom")
    data.add_argument("--num-prompts", type=int, default=requests, help=f"requests (default {requests:,})")
    for part, tokens in (("input", 1024), ("output", 128)):
        names = (f"--random-{part}-len", f"--{part}-len")
        data.add_argument(*names, type=int, default=tokens, dest=f"{part}_len", help=f"tokens (default {tokens:,})")
    data.add_argument("--random-range-ratio", type=float, default=0.0, help="lengths vary by this part (default 0)")
    data.add_argument("--random-prefix-len", type=int, default=0, help="tokens that all prompts begin with")
    data.add_argument("--slo-class", metavar="NAME=SHARE", action="append", default=[], help="share of an SLO class")
    data.add_argument("--temperature", type=float, default=0.0, help="of sampling (default 0: greedy)")
    data.add_argument("--ignore-eos", action=argparse.BooleanOptionalAction, help="default: for made-up prompts only")
    data.add_argument("--extra-body", metavar="JSON", default="{}", help="fields added to every request")
    data.add_argument("--seed", type=int, default=0, help="of all chance (default 0)")
    load = parser.add_argument_group("when it is asked")
    load.add_argument("--request-rate", type=float, default=math.inf, help="per second, however slow the server is")
    load.add_argument(
        "--burstiness", type=float, default=1.0, help="1 Poisson, less burstier, inf a clock (gamma shape)"
    )
    load.add_argument(
        "--max-concurrency", type=int, help="requests in flight; without a rate: clients of a closed loop"
    )
    load.add_argument("--ramp-up-s", type=float, default=0.0, help="until all clients take part")
    load.add_argument("--seconds", type=float, help="send nothing after that")
    load.add_argument(
        "--self-timed", action=argparse.BooleanOptionalAction, help="the dataset's own times (default: traces)"
    )
    load.add_argument("--cancel-share", type=float, default=0.0, help="share of clients that leave in mid-stream")
    load.add_argument("--num-warmups", type=int, default=0, help="requests before, that do not count")
    load.add_argument("--warm-up-s", type=float, default=0.0, help="seconds at the beginning that do not count")


def add_goodput_flags(parser: argparse.ArgumentParser) -> None:
    """Add what makes a request a good one."""
    group = parser.add_argument_group("what counts as good")
    group.add_argument("--goodput", metavar="NAME:MS", nargs="+", default=[], help="e.g. ttft:400 tpot:40 e2el:5000")
    group.add_argument("--slo", metavar="CONFIG", type=Path, help="take targets by class from Baton's YAML instead")
    group.add_argument(
        "--metric-percentiles", default=",".join(f"{p:g}" for p in PERCENTILES), help="e.g. 50,95,99 (default all)"
    )


def endpoint_from(options: argparse.Namespace, url: str | None) -> Endpoint:
    """Reach a URL; None: the router that runs from this checkout, else the usual address. Raises ConfigError."""
    headers = tuple(_pair(word, "--header") for word in options.header)
    tls, key = trust(options.ca, insecure=options.insecure), api_key(options.key_file)
    if url is None:
        record = StateDir.find(os.environ).read()
        if record is not None and record.url:
            front = front_of(record.url, Path(record.run_dir))
            return endpoint(front.url, tls=tls or front.tls, key=key or front.key, headers=headers)
    return endpoint(url or DEFAULT_URL, tls=tls, key=key, headers=headers)


def spec_from(options: argparse.Namespace) -> BenchSpec:
    """Read what is asked, when, and what counts. Raises ConfigError."""
    return BenchSpec(
        dataset=_dataset(options),
        shape=_shape(options),
        options=RunOptions(options.timeout_s, _share(options.cancel_share, "--cancel-share"), options.seed),
        targets=targets_from(options),
        is_chat=options.backend == OPENAI_CHAT,
        model=options.model,
        tokenizer=options.tokenizer,
        temperature=options.temperature,
        ignore_eos=options.ignore_eos,
        extra_body=_json_object(options.extra_body),
        num_warmups=options.num_warmups,
        warm_up_s=options.warm_up_s,
        percentiles=_percentiles(options.metric_percentiles),
        label=getattr(options, "label", None) or "",
    )


def targets_from(options: argparse.Namespace) -> ClassTargets:
    """Read the targets by class; the class "" stands for all. Raises ConfigError."""
    if options.slo is not None:
        return class_targets(load_config(options.slo, environ=os.environ))
    return {"": parse_goodput(options.goodput)} if options.goodput else {}


def class_targets(config: BatonConfig) -> dict[str, Targets]:
    """Take the promise of a configuration; requests that name no class are of the default one."""
    slo = config.slo
    found = {
        name: Targets(promise.ttft_ms, promise.tpot_ms, attainment=promise.attainment)
        for name, promise in slo.classes.items()
    }
    found[""] = found[slo.default or next(iter(slo.classes))]
    return found


def _dataset(options: argparse.Namespace) -> DatasetSpec:
    if options.num_prompts < 1:
        raise ConfigError(f"--num-prompts is {options.num_prompts}; it must be at least 1")
    classes = tuple((name, float(text)) for name, text in (_pair(word, "--slo-class") for word in options.slo_class))
    if options.dataset_path is not None and not options.dataset_path.is_file():
        raise ConfigError(f"--dataset-path: there is no file {options.dataset_path}")
    return DatasetSpec(
        name=options.dataset_name,
        path=options.dataset_path,
        num_requests=options.num_prompts,
        input_tokens=options.input_len,
        output_tokens=options.output_len,
        range_ratio=options.random_range_ratio,
        prefix_tokens=options.random_prefix_len,
        class_shares=classes,
        seed=options.seed,
    )


def _shape(options: argparse.Namespace) -> LoadShape:
    timed = options.dataset_name == TRACE or options.dataset_name in RECIPES
    return LoadShape(
        rate=options.request_rate,
        burstiness=options.burstiness,
        max_concurrency=options.max_concurrency,
        ramp_up_s=options.ramp_up_s,
        seconds=options.seconds,
        keeps_times=timed if options.self_timed is None else options.self_timed,
    )


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < p < 100 for p in found):
        raise ConfigError(f"--metric-percentiles {text}: write numbers between 0 and 100, e.g. 50,95,99")
    return found


def _pair(word: str, flag: str) -> tuple[str, str]:
    name, found, value = word.partition("=")
    if not found:
        raise ConfigError(f"{flag} {word}: write NAME=VALUE")
    return name.strip(), value.strip()


def _share(value: float, flag: str) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{flag} is {value:g}; it must be from 0 to 1")
    return value


def _json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"--extra-body: is no JSON: {exc}") from None
    if not isinstance(value, dict):
        raise ConfigError("--extra-body: write a JSON object")
    return value


def with_flags(parser: argparse.ArgumentParser, words: Sequence[str], *, file: Path) -> argparse.Namespace:
    """Parse words of `file` as the command line would; wrong ones are a ConfigError that names file and flag."""
    try:
        found, unknown = parser.parse_known_args(list(words))
    except argparse.ArgumentError as exc:
        raise ConfigError(f"{file}: {exc}") from None
    if unknown:
        raise ConfigError(f"{file}: there is no flag {' '.join(unknown)}")
    return found
