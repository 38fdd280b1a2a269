"""What is read from a model's config.json, and that anything odd is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.config.model_files import ModelFacts, file_location, looks_like_folder, model_location, read_model_facts


def write_config(folder: Path, text: str) -> None:
    """Make `folder` a model with this config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)


def test_a_folder_gets_its_absolute_path_and_anything_else_stays(tmp_path: Path) -> None:
    (tmp_path / "org" / "m").mkdir(parents=True)
    assert model_location("org/m", tmp_path) == str(tmp_path / "org" / "m")
    assert model_location("org/other", tmp_path) == "org/other"
    assert model_location(str(tmp_path / "org"), Path("/")) == str(tmp_path / "org")


def test_what_ships_with_baton_is_found_from_anywhere(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[3]
    assert model_location("deploy/models", tmp_path) == str(checkout / "deploy" / "models")


def test_a_file_is_below_the_base_else_below_the_checkout(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[3]
    assert file_location("deploy/slo.yaml", tmp_path) == str(checkout / "deploy" / "slo.yaml")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "slo.yaml").touch()
    assert file_location("deploy/slo.yaml", tmp_path) == str(tmp_path / "deploy" / "slo.yaml")
    assert file_location("no/such.json", tmp_path) == str(tmp_path / "no" / "such.json")


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "blob").mkdir()
    (tmp_path / "llama").symlink_to(tmp_path / "blob")
    assert model_location("llama", tmp_path) == str(tmp_path / "llama")


@pytest.mark.parametrize("path", ["x\x00y", "~nobody/x", "a" * 5000, "/" + "a/" * 3000])
def test_impossible_paths_are_no_models(tmp_path: Path, path: str) -> None:
    assert model_location(path, tmp_path) == path
    assert read_model_facts(path, tmp_path) is None


def test_hub_ids_do_not_look_like_folders() -> None:
    assert not looks_like_folder("Qwen/Qwen3-0.6B")
    assert not looks_like_folder("gpt2")
    assert all(looks_like_folder(path) for path in ("/m", "./m", "../m", "~/m", "deploy/models/m", "m/"))


def test_facts_of_a_usual_model(tmp_path: Path) -> None:
    raw = {
        "max_position_embeddings": 4096,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 256,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    write_config(tmp_path / "m", json.dumps(raw))
    assert read_model_facts("m", tmp_path) == ModelFacts(max_model_len=4096, kv_values_per_token=2 * 2 * 4 * 64)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_stretched_positions_are_left_to_the_engine(tmp_path: Path, key: str) -> None:
    raw = {"max_position_embeddings": 4096, key: {"rope_type": "llama3", "factor": 8}}
    write_config(tmp_path / "m", json.dumps(raw))
    assert read_model_facts("m", tmp_path) == ModelFacts(max_model_len=None, kv_values_per_token=None)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"a": ' + "[" * 100_000, "\x00"])
def test_an_unreadable_config_yields_nothing(tmp_path: Path, text: str) -> None:
    write_config(tmp_path / "m", text)
    assert read_model_facts("m", tmp_path) is None


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    write_config(tmp_path / "m", json.dumps({"max_position_embeddings": 1, "x": "y" * (5 << 20)}))
    assert read_model_facts("m", tmp_path) is None
