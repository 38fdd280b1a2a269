"""The configuration as YAML with sources."""

from __future__ import annotations

from pathlib import Path

from core.config.load import load_config, load_with_sources
from core.config.show import effective_values, given_values, to_yaml


def test_given_values_carry_their_source(tmp_path: Path) -> None:
    file = tmp_path / "slo.yaml"
    file.write_text("router:\n  port: 1\nmodel: {lora: [{name: a, path: b}]}\n")
    loaded = load_with_sources(file, overrides=["kv.lease_s=3"], environ={"BATON_ROUTER__HOST": "'1'"})
    assert to_yaml(given_values(loaded), loaded.tree) == (
        "router:\n"
        f"  port: 1  # {file}:2\n"
        "  host: '1'  # BATON_ROUTER__HOST\n"
        "model:\n"
        f"  lora: [{{name: a, path: b}}]  # {file}:3\n"
        "kv:\n"
        "  lease_s: 3  # --set kv.lease_s=3\n"
    )


def test_effective_values_load_back_equal(tmp_path: Path) -> None:
    loaded = load_with_sources(None, overrides=["router.port=8001", "model.name='a # b'"], environ={})
    text = to_yaml(effective_values(loaded), loaded.tree)
    assert "  port: 8001  # --set router.port=8001\n" in text
    assert "  host: 127.0.0.1\n" in text
    copy = tmp_path / "copy.yaml"
    copy.write_text(text)
    assert load_config(copy, environ={}) == loaded.config


def test_pools_to_be_planned_are_shown_as_such() -> None:
    loaded = load_with_sources(None, overrides=["pools=auto"], environ={})
    assert to_yaml(given_values(loaded), loaded.tree) == "pools: auto  # --set pools=auto\n"
    assert "\npools: auto  # --set pools=auto\n" in to_yaml(effective_values(loaded), loaded.tree)


def test_nothing_given_is_an_empty_mapping() -> None:
    loaded = load_with_sources(None, environ={})
    assert to_yaml(given_values(loaded), loaded.tree) == "{}\n"


def test_a_source_cannot_end_its_comment(tmp_path: Path) -> None:
    loaded = load_with_sources(None, overrides=["model.name=\nx"], environ={})
    text = to_yaml(given_values(loaded), loaded.tree)
    assert text == "model:\n  name: x  # --set model.name=?x\n"
