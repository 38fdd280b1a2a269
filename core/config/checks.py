"""What must agree between several keys.

Owns the rules that no single key can state. They read the tree before it is typed, so that they speak up beside every
other problem: a rule whose keys are missing or of a wrong type keeps silent, for that was said already.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath

from core.config.front_checks import check_front
from core.config.model_files import read_model_facts
from core.config.models import BatonConfig
from core.config.problems import ConfigProblem
from core.config.security_checks import check_security
from core.config.settings import POOLS, Settings
from core.config.tree import ConfigTree, Path
from core.policy.registry import POLICIES

_MIB = 1 << 20
PREDICTING_POLICY = "slo-aware"
# Flags of `vllm serve` that Baton sets itself, and the key that does it.
_OWN_FLAGS = {
    "model": "model.path",
    "served-model-name": "model.name",
    "dtype": "model.dtype",
    "max-model-len": "model.max_model_len",
    "block-size": "model.block_size",
    "enable-lora": "model.lora",
    "lora-modules": "model.lora",
    "max-num-seqs": "pools.<pool>.max_num_seqs",
    "max-num-batched-tokens": "pools.<pool>.max_num_batched_tokens",
    "kv-cache-memory-bytes": "pools.<pool>.kv_cache_mb",
    "tensor-parallel-size": "pools.<pool>.tensor_parallel",
    "pipeline-parallel-size": "pools.<pool>.pipeline_parallel",
    "kv-transfer-config": "kv",
    "host": "router.host",
    "port": "router.port",
}


def check_across(tree: ConfigTree, *, base: FilePath | None = None) -> list[ConfigProblem]:
    """Apply every rule to `tree`; relative model paths start at `base` (default: the working directory)."""
    settings = Settings(tree, BatonConfig().model_dump(mode="json"))
    rules: tuple[Callable[[Settings], Iterator[ConfigProblem]], ...] = (
        _default_class_exists,
        _someone_makes_output,
        _lora_names_are_unique,
        _engine_args_leave_own_flags,
        _steps_hold_their_requests,
        _pools_can_pair,
        _gpus_cover_parallelism,
        _policy_exists,
        _traffic_is_given_once,
        _ranges_are_ranges,
    )
    problems = [problem for rule in rules for problem in rule(settings)]
    problems += check_front(settings, base)
    problems += check_security(settings, base)
    return problems + list(_model_fits(settings, base))


def check_typed(config: BatonConfig, *, source: str, base: FilePath | None = None) -> list[ConfigProblem]:
    """Apply every rule to a configuration that was not loaded but made, by `source`."""
    tree = ConfigTree(default_source=source)
    tree.root = config.model_dump(mode="json")
    return check_across(tree, base=base)


def _default_class_exists(settings: Settings) -> Iterator[ConfigProblem]:
    path: Path = ("slo", "default")
    default, classes = settings.text(path), settings.mapping(("slo", "classes"))
    if default is not None and classes and default not in classes:
        yield settings.problem(path, "is not one of slo.classes", "name one of " + ", ".join(classes))


def _lora_names_are_unique(settings: Settings) -> Iterator[ConfigProblem]:
    adapters = settings.value(("model", "lora"))
    if not isinstance(adapters, list):
        return
    served = settings.text(("model", "name"))
    seen: dict[str, int] = {}
    for index, _ in enumerate(adapters):
        path: Path = ("model", "lora", index, "name")
        name = settings.text(path)
        if name is None:
            continue
        if name in seen:
            yield settings.problem(path, f"is the name of model.lora[{seen[name]}] too: names must be unique")
        elif name == served:
            yield settings.problem(path, "is the name of the base model: names must be unique")
        seen.setdefault(name, index)


def _engine_args_leave_own_flags(settings: Settings) -> Iterator[ConfigProblem]:
    for key in settings.mapping(("model", "engine_args")):
        path: Path = ("model", "engine_args", key)
        flag = key.lstrip("-").replace("_", "-").removeprefix("no-")
        if flag in _OWN_FLAGS:
            yield settings.problem(path, "Baton sets this flag itself", f"use {_OWN_FLAGS[flag]}")
        elif key.startswith("-"):
            yield settings.problem(path, "is written without the leading dashes", f"write {key.lstrip('-')}")


def _someone_makes_output(settings: Settings) -> Iterator[ConfigProblem]:
    path: Path = ("pools", "decode", "replicas")
    if settings.value(path) == 0:
        message = "must be at least 1: decode workers make the output; for one pool, set pools.prefill.replicas to 0"
        yield settings.problem(path, message)


def _steps_hold_their_requests(settings: Settings) -> Iterator[ConfigProblem]:
    for pool in settings.pools():
        path: Path = ("pools", pool, "max_num_batched_tokens")
        tokens, seqs = settings.integer(path), settings.integer(("pools", pool, "max_num_seqs"))
        if tokens is not None and seqs is not None and tokens < seqs:
            yield settings.problem(path, f"must be at least pools.{pool}.max_num_seqs, which is {seqs}")


def _pools_can_pair(settings: Settings) -> Iterator[ConfigProblem]:
    """KV blocks of workers that are split differently mean different things, so such workers are never paired."""
    if len(settings.pools()) < len(POOLS):
        return
    for key in ("tensor_parallel", "pipeline_parallel"):
        prefill = settings.integer(("pools", "prefill", key))
        decode = settings.integer(("pools", "decode", key))
        if prefill is not None and decode is not None and prefill != decode:
            message = f"must equal pools.prefill.{key}, which is {prefill}: other workers cannot exchange KV"
            yield settings.problem(("pools", "decode", key), message)


def _gpus_cover_parallelism(settings: Settings) -> Iterator[ConfigProblem]:
    for pool in settings.pools():
        path: Path = ("pools", pool, "gpus")
        gpus = settings.integer(path)
        tensor = settings.integer(("pools", pool, "tensor_parallel"))
        pipeline = settings.integer(("pools", pool, "pipeline_parallel"))
        if gpus is None or tensor is None or pipeline is None:
            continue
        if gpus < tensor * pipeline:
            message = f"must be at least tensor_parallel x pipeline_parallel, which is {tensor * pipeline}, or 0"
            yield settings.problem(path, message)


def _policy_exists(settings: Settings) -> Iterator[ConfigProblem]:
    path: Path = ("router", "policy")
    name = settings.text(path)
    if name is not None and name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        suggestion = f"did you mean {near[0]}?" if near else "choose one of " + ", ".join(sorted(POLICIES))
        yield settings.problem(path, "is no policy", suggestion)


def _traffic_is_given_once(settings: Settings) -> Iterator[ConfigProblem]:
    path: Path = ("plan", "workload")
    if settings.text(path) is not None and settings.text(("plan", "trace")) is not None:
        yield settings.problem(path, "stands beside plan.trace, which says what traffic to expect: keep one of them")


def _ranges_are_ranges(settings: Settings) -> Iterator[ConfigProblem]:
    for pool in POOLS:
        path: Path = ("scaling", pool, "max")
        least, most = settings.integer(("scaling", pool, "min")), settings.integer(path)
        if least is not None and most is not None and most < least:
            yield settings.problem(path, f"must be at least scaling.{pool}.min, which is {least}")
    path = ("healing", "max_delay_s")
    first_s, longest_s = settings.value(("healing", "first_delay_s")), settings.value(path)
    if isinstance(first_s, int | float) and isinstance(longest_s, int | float) and longest_s < first_s:
        yield settings.problem(path, f"must be at least healing.first_delay_s, which is {first_s:g}")


def _model_fits(settings: Settings, base: FilePath | None) -> Iterator[ConfigProblem]:
    """Compare lengths and memory with what the model's files say, as far as they are at hand and usual."""
    model = settings.text(("model", "path"))
    facts = read_model_facts(model, base) if model else None
    if facts is None:
        return
    path: Path = ("model", "max_model_len")
    asked = settings.integer(path)
    if asked is not None and facts.max_model_len is not None and asked > facts.max_model_len:
        yield settings.problem(path, f"is more than the model's own limit of {facts.max_model_len} tokens")
        return
    tokens = asked or facts.max_model_len
    if tokens is None or facts.kv_values_per_token is None or _has_other_cache_type(settings):
        return
    bytes_per_value = 4 if settings.text(("model", "dtype")) == "float32" else 2
    block = settings.integer(("model", "block_size")) or 1
    needed = math.ceil(tokens / block) * block * facts.kv_values_per_token * bytes_per_value
    for pool in settings.pools():
        cache: Path = ("pools", pool, "kv_cache_mb")
        given = settings.integer(cache)
        if given is not None and given * _MIB < needed:
            wanted = math.ceil(needed / _MIB)
            yield settings.problem(
                cache,
                f"is too small for one request of {tokens} tokens, which needs {wanted}",
                f"write at least {wanted}, or a smaller model.max_model_len",
            )


def _has_other_cache_type(settings: Settings) -> bool:
    return any("cache-dtype" in key.replace("_", "-") for key in settings.mapping(("model", "engine_args")))
