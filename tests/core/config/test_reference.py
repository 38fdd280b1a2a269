"""docs/configuration.md is what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.models import BatonConfig
from core.config.reference import main, render
from core.config.schema import config_schema, leaf_paths

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        f"run: python -m core.config.reference --write docs/{PAGE.name}"
    )


def test_every_key_has_its_row() -> None:
    page = render()
    names = [".".join(path).replace(".<index>", "[]") for path in leaf_paths(config_schema())]
    assert [name for name in names if f"| `{name}` |" not in page] == []
    assert all(f"\n## {section}\n" in page for section in BatonConfig.model_fields)


def test_links_of_the_page_lead_somewhere() -> None:
    for name in ("../deploy/slo.yaml", "../deploy/examples"):
        assert f"({name})" in render()
        assert (PAGE.parent / name).exists()


def test_write_and_check_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.md"
    assert main(["--check", str(file)]) == 1
    assert main(["--write", str(file)]) == 0
    assert main(["--check", str(file)]) == 0
    file.write_text(file.read_text() + "x")
    assert main(["--check", str(file)]) == 1
    assert "out of date" in capsys.readouterr().err


def test_without_flags_the_page_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == render()
