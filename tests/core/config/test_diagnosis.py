"""What is said about one wrong key: the value, the range, the line, and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.load import load_config
from core.config.problems import ConfigErrors, ConfigProblem


def problems_of(tmp_path: Path, yaml: str) -> list[ConfigProblem]:
    """Load a YAML text that is wrong; give its problems with the source cut to the line."""
    file = tmp_path / "slo.yaml"
    file.write_text(yaml)
    with pytest.raises(ConfigErrors) as caught:
        load_config(file, environ={})
    prefix = f"{file}:"
    return [
        ConfigProblem(p.path, p.message, p.source.removeprefix(prefix), p.value, p.allowed, p.suggestion)
        for p in caught.value.problems
    ]


CLASS = "slo:\n  classes:\n    chat: {"
MS = "number from 1 to 3600000, in milliseconds"
CLASS_KEYS = "the keys ttft_ms, tpot_ms, attainment, tier"


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (
            "ttft_s: 0.4, tpot_ms: 40",
            ConfigProblem(
                "slo.classes.chat.ttft_s",
                "unknown key",
                "3",
                "0.4",
                CLASS_KEYS,
                "did you mean ttft_ms, in milliseconds? write ttft_ms: 400",
            ),
        ),
        (
            "ttft: 400, tpot_ms: 40",
            ConfigProblem(
                "slo.classes.chat.ttft", "unknown key", "3", "400", CLASS_KEYS, "did you mean ttft_ms, in milliseconds?"
            ),
        ),
        (
            "ttft: 0.4 s, tpot_ms: 40",
            ConfigProblem(
                "slo.classes.chat.ttft",
                "unknown key",
                "3",
                "0.4 s",
                CLASS_KEYS,
                "did you mean ttft_ms, in milliseconds? write ttft_ms: 400",
            ),
        ),
        (
            "ttft_ms: 400ms, tpot_ms: 40",
            ConfigProblem(
                "slo.classes.chat.ttft_ms",
                "is text",
                "3",
                "400ms",
                MS,
                "the unit stands in the key: write ttft_ms: 400",
            ),
        ),
        (
            "ttft_ms: 0.4, tpot_ms: 40",
            ConfigProblem(
                "slo.classes.chat.ttft_ms",
                "is out of range",
                "3",
                "0.4",
                MS,
                "if you mean 0.4 seconds, write ttft_ms: 400",
            ),
        ),
        (
            "ttft_ms: '400', tpot_ms: 40",
            ConfigProblem("slo.classes.chat.ttft_ms", "is text", "3", "'400'", MS, "write it without quotes"),
        ),
        (
            "ttft_ms: true, tpot_ms: 40",
            ConfigProblem("slo.classes.chat.ttft_ms", "is a truth value", "3", "true", MS),
        ),
        (
            "ttft_ms: .nan, tpot_ms: 40",
            ConfigProblem("slo.classes.chat.ttft_ms", "is out of range", "3", ".nan", MS),
        ),
        ("tpot_ms: 40", ConfigProblem("slo.classes.chat.ttft_ms", "is required", "3", None, MS)),
    ],
)
def test_units_and_types_of_a_target(tmp_path: Path, keys: str, wanted: ConfigProblem) -> None:
    assert problems_of(tmp_path, f"{CLASS}{keys}}}\n") == [wanted]


@pytest.mark.parametrize(
    ("yaml", "path", "message", "suggestion"),
    [
        ("router: {prot: 1}", "router.prot", "unknown key", "did you mean port?"),
        ("routr: {port: 1}", "routr", "unknown key", "did you mean router?"),
        ("port: 1", "port", "unknown key", "port belongs at router.port"),
        (
            "replicas: 1",
            "replicas",
            "unknown key",
            "replicas belongs at pools.prefill.replicas or pools.decode.replicas",
        ),
        ("zebra: 1", "zebra", "unknown key", None),
        ("kv: {lease_s: 30000}", "kv.lease_s", "is out of range", "if you mean 30000 milliseconds, write lease_s: 30"),
        (
            "kv: {staging_mb: 1073741824}",
            "kv.staging_mb",
            "is out of range",
            "if you mean 1073741824 bytes, write staging_mb: 1024",
        ),
        ("router: {max_body_mb: 0}", "router.max_body_mb", "is out of range", None),
        ("router: {port: 99999}", "router.port", "is out of range", None),
        ("router: {port: '1'}", "router.port", "is text", "write it without quotes"),
        ("router: {port: true}", "router.port", "is a truth value", None),
        ("router: {port: 8000.0}", "router.port", "is a number", "write 8000"),
        ("router: {port: [1]}", "router.port", "is a list", None),
        ("router: {host: 1}", "router.host", "is a number", 'write it in quotes: "1"'),
        ("router: {host: ''}", "router.host", "must not be empty", None),
        ("router: {host: }", "router.host", "is empty", "remove the key, or give a value"),
        ("router:", "router", "is empty", "remove the key, or put values under it"),
        ("router: 3", "router", "is a number", None),
        ("ray: {dashboard: yes}", "ray.dashboard", "is text", "write true"),
        ("ray: {dashboard: 1}", "ray.dashboard", "is a number", None),
        ("kv: {transport: gprc}", "kv.transport", "is not one of the choices", "did you mean grpc?"),
        ("model: {dtype: 16}", "model.dtype", "is a number", None),
        ("model: {block_size: 20}", "model.block_size", "is out of range", None),
        ("model: {lora: {a: b}}", "model.lora", "is a mapping", None),
        ("model: {lora: [a]}", "model.lora[0]", "is text", None),
        ("model: {engine_args: {a: [1]}}", "model.engine_args.a", "is a list", None),
        ("slo: {classes: {}}", "slo.classes", "must not be empty", None),
        ("slo: {classes: {a b: {ttft_ms: 1, tpot_ms: 1}}}", "slo.classes.a b", "is not a valid name", None),
    ],
)
def test_one_wrong_key_is_one_problem(
    tmp_path: Path, yaml: str, path: str, message: str, suggestion: str | None
) -> None:
    found = problems_of(tmp_path, yaml)
    assert [(p.path, p.message, p.suggestion) for p in found] == [(path, message, suggestion)]
    assert found[0].source == "1"
    assert found[0].value is not None


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    found = problems_of(tmp_path, f"router: {{port: {'x' * 500}}}")
    assert found[0].value == "x" * 57 + "..."
