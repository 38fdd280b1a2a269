"""Where compiled code is kept: beside the sources, in the home, or nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.kernel import compiled


def test_code_is_kept_beside_the_sources() -> None:
    folder = compiled._cache_folder()
    assert folder is not None
    assert folder.parent == Path(compiled.__file__).parent / "__pycache__"


def test_code_is_kept_in_the_home_when_the_sources_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sources_at(tmp_path / "sources", monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = compiled._cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path / ".cache" / "baton"


def test_code_is_kept_nowhere_when_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sources_at(tmp_path / "sources", monkeypatch)
    (tmp_path / ".cache").write_text("a file where a folder should be")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled._cache_folder() is None


def _sources_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the package lies where a file bars its cache; permissions would not stop the root user."""
    folder.mkdir()
    (folder / "__pycache__").write_text("a file where a folder should be")
    monkeypatch.setattr(compiled, "__file__", str(folder / "compiled.py"))
