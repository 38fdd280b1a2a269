"""Environment variables and --set."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from core.config.overlay import apply_environment, apply_overrides
from core.config.schema import config_schema
from core.config.tree import ConfigTree, Value
from core.config.yaml_text import read_yaml

SCHEMA = config_schema()


def environment(variables: Mapping[str, str], yaml: str = "{}") -> tuple[dict[str, Value], list[str]]:
    """Lay variables over a YAML text; give the tree and the problems as text."""
    tree, _ = read_yaml(yaml, file="a.yaml")
    problems = apply_environment(tree, variables, SCHEMA)
    return tree.root, [str(problem) for problem in problems]


def overrides(*texts: str, yaml: str = "{}") -> tuple[dict[str, Value], list[str]]:
    """Lay --set texts over a YAML text; give the tree and the problems as text."""
    tree, _ = read_yaml(yaml, file="a.yaml")
    problems = apply_overrides(tree, texts)
    return tree.root, [str(problem) for problem in problems]


def test_double_underscores_separate_levels_and_values_are_yaml() -> None:
    root, problems = environment(
        {
            "BATON_ROUTER__PORT": "8001",
            "BATON_RAY__DASHBOARD": "true",
            "BATON_MODEL__NAME": "'8'",
            "BATON_MODEL__LORA": "[{name: a, path: b}]",
            "BATON_KV__LEASE_S": "",
        }
    )
    assert problems == []
    assert root == {
        "router": {"port": 8001},
        "ray": {"dashboard": True},
        "model": {"name": "8", "lora": [{"name": "a", "path": "b"}]},
        "kv": {"lease_s": None},
    }


def test_keys_of_the_file_are_found_whatever_their_case() -> None:
    yaml = "slo: {classes: {Chat-v1.0: {ttft_ms: 1}}}\nmodel: {engine_args: {max-lora-rank: 8}}\n"
    root, problems = environment(
        {"BATON_SLO__CLASSES__CHAT_V1_0__TTFT_MS": "5", "BATON_MODEL__ENGINE_ARGS__MAX_LORA_RANK": "64"}, yaml
    )
    assert problems == []
    assert root == {
        "slo": {"classes": {"Chat-v1.0": {"ttft_ms": 5}}},
        "model": {"engine_args": {"max-lora-rank": 64}},
    }


def test_a_whole_section_can_be_a_variable() -> None:
    assert environment({"BATON_POOLS": "auto"}) == ({"pools": "auto"}, [])


def test_other_variables_are_left_alone() -> None:
    others = {"BATON_STATE_DIR": "/x", "BATON_DEBUG": "1", "BATON_HOME": "x", "PATH": "/bin", "ROUTER__PORT": "1"}
    assert environment(others) == ({}, [])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("BATON_ROUTER_PORT", "1", "two underscores separate levels; write BATON_ROUTER__PORT"),
        ("BATON_POOLS_DECODE_MAX_NUM_SEQS", "1", "write BATON_POOLS__DECODE__MAX_NUM_SEQS"),
        ("BATON_ROUTER__", "1", "a level is empty"),
        ("BATON___PORT", "1", "a level is empty"),
        ("BATON_ROUTER__PORT", "[1", "router.port = [1: the value is not YAML"),
        ("BATON_ROUTER__PORT", "!x 1", "router.port: the tag !x is not allowed here"),
        ("BATON_ROUTER__HOST", "\udcff", "holds bytes that are no text"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, message: str) -> None:
    root, problems = environment({name: value})
    assert root == {}
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}: ")
    assert message in problems[0]


def test_overrides_apply_in_order_and_reach_into_lists() -> None:
    root, problems = overrides(
        "router.port=1",
        "router.port=2",
        "model.lora.0.path=c",
        "model.engine_args.max-lora-rank=8",
        "model.name=a=b",
        yaml="model: {lora: [{name: a, path: b}]}",
    )
    assert problems == []
    assert root == {
        "router": {"port": 2},
        "model": {"lora": [{"name": "a", "path": "c"}], "engine_args": {"max-lora-rank": 8}, "name": "a=b"},
    }


@pytest.mark.parametrize("text", ["router.port", "=1", "router..port=1", ".=1", ""])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    root, problems = overrides(text)
    assert root == {}
    assert problems == [f"--set {text}: must be KEY=VALUE with a dotted key, e.g. router.port=8001"]


def test_the_latest_layer_is_the_source() -> None:
    tree = ConfigTree()
    apply_environment(tree, {"BATON_ROUTER__PORT": "1", "BATON_ROUTER__HOST": "h"}, SCHEMA)
    apply_overrides(tree, ["router.port=2"])
    assert tree.source_of(("router", "port")) == "--set router.port=2"
    assert tree.source_of(("router", "host")) == "BATON_ROUTER__HOST"
