"""Properties of loading, for any configuration and any damage to one.

1. Every configuration that the models and the rules allow, written as YAML by either writer, loads back equal.
2. Whatever is done to text, tree, variables or flags, loading gives a configuration or ConfigErrors, never another
   exception, and ConfigErrors hold at least one problem, each with source and message.
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.load import LoadedConfig, load_config, load_with_sources
from core.config.models import (
    BatonConfig,
    KVConfig,
    LoraConfig,
    ModelConfig,
    PlanConfig,
    PoolConfig,
    PoolsConfig,
    RayConfig,
    RouterConfig,
    SLOClass,
    SLOConfig,
)
from core.config.problems import ConfigErrors
from core.config.show import effective_values, to_yaml
from core.config.tree import Value
from core.config.yaml_text import write_yaml

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DEFAULT_FILE = (Path(__file__).parents[3] / "deploy" / "slo.yaml").read_text()

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
NAME = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,15}\Z")
FLAG = st.from_regex(r"\Ax-[a-z0-9-]{1,12}\Z")  # no flag of Baton's own


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Any number of a range, whole ones too."""
    return st.floats(low, high) | st.integers(int(low) + 1, int(high)).map(float)


@st.composite
def pools(draw: st.DrawFn, tensor: int, pipeline: int, at_least: int = 0) -> PoolConfig:
    """One pool, its parallelism given, for both pools must have the same."""
    seqs = draw(st.integers(1, 65536))
    return PoolConfig(
        replicas=draw(st.integers(at_least, 4096)),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(max(32, seqs), 1 << 20)),
        shared_step_tokens=draw(st.none() | st.integers(32, 1 << 20)),
        kv_cache_mb=draw(st.none() | st.integers(4096, 1 << 24)),
        cpus=draw(numbers(0, 1024)),
        gpus=draw(st.none() | st.just(0) | st.integers(tensor * pipeline, 4096)),
        node_resource=draw(st.none() | TEXT),
    )


@st.composite
def plans(draw: st.DrawFn) -> PlanConfig:
    """Any section `plan`; a trace and a workload exclude each other."""
    workload = draw(st.none() | st.sampled_from(["chat", "code", "summarize", "agent", "mixed"]))
    return PlanConfig(
        profile=draw(st.none() | TEXT),
        gpu=draw(st.none() | TEXT),
        gpus=draw(st.none() | st.integers(1, 65536)),
        gpus_per_node=draw(st.none() | st.integers(1, 1024)),
        price_per_hour=draw(st.none() | st.floats(0.01, 1e6)),
        workload=workload,
        trace=draw(TEXT) if workload is None else None,
        rate=draw(st.none() | st.floats(0.01, 1e7)),
        network_gbit_s=draw(st.none() | st.floats(0.01, 1e6)),
        cpus=draw(numbers(0, 1024)),
        kv_cache_mb=draw(st.none() | st.integers(8, 1 << 24)),
    )


@st.composite
def configs(draw: st.DrawFn) -> BatonConfig:
    """Any configuration that the rules allow."""
    adapters = draw(st.lists(NAME.filter(lambda name: name != "base"), unique=True, max_size=3))
    value = st.text(max_size=5).filter(str.isprintable) | st.integers(-1000, 1000) | st.booleans() | numbers(0, 9)
    names = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    promise = st.builds(SLOClass, ttft_ms=numbers(1, 3.6e6), tpot_ms=numbers(0.1, 6e5), attainment=st.floats(0.01, 1))
    tensor, pipeline = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    return BatonConfig(
        model=ModelConfig(
            path=draw(TEXT),
            name=draw(st.none() | st.just("base")),
            dtype=draw(st.sampled_from(["auto", "float32", "bfloat16", "float16"])),
            max_model_len=draw(st.none() | st.integers(16, 4096)),
            block_size=draw(st.integers(1, 16)) * 16,
            lora=tuple(LoraConfig(name=name, path=draw(TEXT)) for name in adapters),
            engine_args=draw(st.dictionaries(FLAG, value, max_size=3)),
        ),
        slo=SLOConfig(
            classes={name: draw(promise) for name in names}, default=draw(st.none() | st.sampled_from(names))
        ),
        pools=draw(
            st.just("auto")
            | st.builds(PoolsConfig, prefill=pools(tensor, pipeline), decode=pools(tensor, pipeline, at_least=1))
        ),
        plan=draw(plans()),
        kv=KVConfig(
            transport=draw(st.sampled_from(["auto", "shm", "tcp", "grpc"])),
            lease_s=draw(st.floats(0.2, 3600)),
            staging_mb=draw(st.integers(16, 1 << 20)),
        ),
        router=RouterConfig(
            host=draw(TEXT),
            port=draw(st.integers(0, 65535)),
            max_body_mb=draw(st.floats(0.01, 120)),
            whole_below_tokens=draw(st.integers(0, 1 << 24)),
            event_log=draw(st.none() | TEXT),
        ),
        ray=RayConfig(address=draw(TEXT), dashboard=draw(st.booleans()), start_timeout_s=draw(st.floats(1, 86400))),
    )


def load_text(text: str, *overrides: str, **environ: str) -> LoadedConfig:
    """Write a file and load it."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "slo.yaml"
        file.write_text(text, encoding="utf-8", newline="")
        return load_with_sources(file, overrides=overrides, environ=environ)


def loads_or_reports(text: str, *overrides: str, **environ: str) -> None:
    """Load, and hold refusals to their form."""
    refusal: ConfigErrors | None = None
    try:
        load_text(text, *overrides, **environ)
    except ConfigErrors as exc:
        refusal = exc
    if refusal is not None:
        assert refusal.problems
        assert all(problem.source and problem.message for problem in refusal.problems)
        assert str(refusal).encode()


@SLOW
@given(configs())
def test_any_configuration_round_trips(config: BatonConfig) -> None:
    loaded = load_text(write_yaml(effective_values(LoadedConfig(config, load_text("{}").tree))))
    assert loaded.config == config
    assert load_text(to_yaml(effective_values(loaded), loaded.tree)).config == config


CHARACTERS = st.sampled_from(list(":{}[],&*#?|-<>=!%@\\\"'` \n\t09aZ~.")) | st.characters(exclude_categories=["Cs"])


@SLOW
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.text(CHARACTERS, max_size=4)), max_size=6))
def test_damaged_text_never_escapes(damage: list[tuple[float, int, str]]) -> None:
    text = DEFAULT_FILE
    for place, cut, paste in damage:
        at = int(place * len(text))
        text = text[:at] + paste + text[at + cut :]
    loads_or_reports(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["auto", "400ms"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@SLOW
@given(configs(), st.lists(st.tuples(st.lists(st.integers(0, 20), max_size=5), JSON, st.text(max_size=8)), max_size=3))
def test_damaged_trees_never_escape(config: BatonConfig, damage: list[tuple[list[int], Value, str]]) -> None:
    root: Value = copy.deepcopy(config.model_dump(mode="json"))
    for steps, value, key in damage:
        node = root
        for step in steps:
            inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
            if not inner or not isinstance(inner[step % len(inner)], (dict, list)):
                break
            node = inner[step % len(inner)]
        if isinstance(node, dict):
            node[key or next(iter(node), "")] = value
        elif isinstance(node, list):
            node.append(value)
    assert isinstance(root, dict)
    loads_or_reports(write_yaml(root))


KEYS = st.sampled_from(["router.port", "pools", "slo.classes.chat.ttft_ms", "model.lora.0", "model.engine_args.a", "x"])


@SLOW
@given(KEYS, st.text(CHARACTERS, max_size=12), st.text(max_size=12))
def test_odd_flags_and_variables_never_escape(key: str, value: str, name: str) -> None:
    variable = "BATON_" + key.replace(".", "__").upper()
    loads_or_reports("{}", f"{key}={value}", name, f"{name}={value}", **{variable: value, f"BATON_{name}__X": value})


@given(st.lists(KEYS, max_size=3))
def test_loading_leaves_its_arguments_alone(keys: list[str]) -> None:
    environ, overrides = {"BATON_ROUTER__PORT": "1"}, [f"{key}=1" for key in keys]
    before = dict(environ), list(overrides)
    with contextlib.suppress(ConfigErrors):
        load_config(None, overrides=overrides, environ=environ)
    assert (environ, overrides) == before
