"""The tree's description of itself."""

from __future__ import annotations

import pytest

from core.config.models import BatonConfig
from core.config.schema import config_schema, find, leaf_paths
from core.config.yaml_text import read_value

SCHEMA = config_schema()


def test_every_key_of_the_default_configuration_is_described_with_its_default() -> None:
    dumped = BatonConfig().model_dump(mode="json")
    for path in leaf_paths(SCHEMA):
        if any(part.startswith("<") for part in path):
            continue
        spec = find(SCHEMA, path)
        assert spec is not None
        assert spec.default is not None
        value = dumped
        for part in path:
            value = value[part]
        assert read_value(spec.default, source="") == (value, []), path


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (("router", "port"), "whole number from 0 to 65535"),
        (("kv", "lease_s"), "number above 0.1, at most 3600, in seconds"),
        (("slo", "classes", "any", "ttft_ms"), "number from 1 to 3600000, in milliseconds"),
        (("model", "lora", 3, "path"), "text, not empty"),
        (("model", "dtype"), "one of auto, float32, bfloat16, float16"),
        (("model", "block_size"), "whole number divisible by 16 from 16 to 256"),
        (("pools", "decode", "kv_cache_mb"), "whole number from 8 to 16777216, in MiB, or null"),
        (("ray", "dashboard"), "true or false"),
        (("plan", "network_gbit_s"), "number above 0, at most 1000000, in gigabits per second, or null"),
        (("pools",), "section with the keys prefill, decode, or auto"),
        (("ray",), "section with the keys address, dashboard, wait_for_nodes_s, start_timeout_s, near"),
        (("slo", "classes"), "names, each with keys of its own"),
    ],
)
def test_what_is_allowed_is_said_in_words(path: tuple[str | int, ...], allowed: str) -> None:
    spec = find(SCHEMA, path)
    assert spec is not None
    assert spec.allowed == allowed


def test_unknown_paths_are_not_described() -> None:
    assert find(SCHEMA, ("router", "prot")) is None
    assert find(SCHEMA, ("router", "port", "x")) is None
    assert find(SCHEMA, ("nothing", "at", "all")) is None


def test_required_keys_and_choices_are_known() -> None:
    ttft, transport = find(SCHEMA, ("slo", "classes", "a", "ttft_ms")), find(SCHEMA, ("kv", "transport"))
    assert ttft is not None
    assert transport is not None
    assert (ttft.required, ttft.minimum, ttft.maximum) == (True, 1.0, 3_600_000.0)
    assert (transport.required, transport.choices) == (
        False,
        ("auto", "nccl", "shm", "nixl", "tcp", "grpc", "none"),
    )
