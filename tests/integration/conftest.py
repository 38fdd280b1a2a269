"""One stack of real engines for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.demo_model.random_model import make_random_lora
from tests.support.stack import MODEL, Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir: Path = tmp_path_factory.mktemp("stack")
    lora = make_random_lora(run_dir / "lora", MODEL, rank=8, seed=3)
    stack = Stack(run_dir, lora)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
