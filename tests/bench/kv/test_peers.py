from __future__ import annotations

import site
from pathlib import Path

import pytest

from bench.kv.peers import REQUIREMENTS, install
from bench.peers_venv import PeersMissing


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    (tmp_path / "bench-requirements.txt").write_text("\n".join((*REQUIREMENTS, *site.getsitepackages())))
    assert install(tmp_path) == tmp_path / "bin"
    assert not (tmp_path / "bin").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(PeersMissing, match="venv"):
        install(taken)
