"""Digests change with what they stand for, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.fingerprint import adapters_digest, combined_digest, model_digest, tokenizer_digest

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 8}')
    (model / "generation_config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\x01" * (3 * MIB))
    (model / "tokenizer.json").write_text("{}")
    return model


def test_copies_are_equal(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert (model_digest(copy), tokenizer_digest(copy)) == (model_digest(folder), tokenizer_digest(folder))


@pytest.mark.parametrize("offset", [0, MIB - 1, 2 * MIB, 3 * MIB - 1])
def test_weights_differ_by_head_and_tail(folder: Path, offset: int) -> None:
    before = model_digest(folder)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x02")
    assert model_digest(folder) != before


def test_weights_differ_by_size_name_and_config(folder: Path, tmp_path: Path) -> None:
    seen = {model_digest(folder)}
    (folder / "config.json").write_text('{"hidden_size": 9}')
    seen.add(model_digest(folder))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    seen.add(model_digest(folder))
    with (folder / "other.safetensors").open("ab") as stream:
        stream.write(b"\x01")
    seen.add(model_digest(folder))
    assert len(seen) == 4


def test_generation_defaults_do_not_separate_models(folder: Path) -> None:
    before = model_digest(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    assert model_digest(folder) == before


def test_the_chat_template_belongs_to_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    given_as_file = tokenizer_digest(folder, str(template))
    assert given_as_file == tokenizer_digest(folder, "{{ messages }}")
    assert given_as_file != tokenizer_digest(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_digest(folder) not in (given_as_file, "")


def test_adapters_count_by_name_and_weights_in_any_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(name.encode())
    a, b = ("a", str(tmp_path / "a")), ("b", str(tmp_path / "b"))
    assert adapters_digest([a, b]) == adapters_digest([b, a])
    assert len({adapters_digest(x) for x in ([], [a], [b], [a, b], [("a", b[1])])}) == 5
    assert adapters_digest([]) == ""


def test_parts_do_not_run_together() -> None:
    assert combined_digest(("ab", "c")) != combined_digest(("a", "bc"))
