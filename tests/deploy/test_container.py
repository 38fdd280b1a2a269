"""The container file: what it copies and runs is there. Building needs a network and is not tried."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.setup import ENGINES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "container" / "Dockerfile").read_text()


def test_what_it_copies_is_there() -> None:
    sources = [line.split()[1] for line in TEXT.splitlines() if line.startswith("COPY ")]
    assert sources[-1] == "."
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_set_up_sees_its_requirements_before_the_code() -> None:
    """So that a change of the code does not install the engine again."""
    order = [TEXT.index(part) for part in ("COPY pyproject.toml", "RUN python3 deploy/setup.py", "COPY . .")]
    assert order == sorted(order)


def test_its_default_engine_is_one_that_set_up_knows() -> None:
    named = set(re.findall(r"ENGINE=(\w+)", TEXT))
    assert named <= set(ENGINES)
    assert "cuda" in named


def test_what_is_left_out_of_the_image_is_not_needed_there() -> None:
    ignored = (ROOT / "deploy" / "container" / "Dockerfile.dockerignore").read_text().split()
    assert {".venv", ".git", "tests"} <= set(ignored)
    assert not {"deploy", "core", "baton.py"} & set(ignored)


def test_it_serves_as_an_ordinary_user() -> None:
    users = re.findall(r"^USER (\S+)", TEXT, re.MULTILINE)
    assert users == ["baton"]
