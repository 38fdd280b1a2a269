"""The commands of the pages, run as they stand: those that need nothing, and those that ask one cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.doc_pages import Block, pages
from tests.support.doc_shell import Shell

BLOCKS = [block for page in pages() for block in page.blocks()]


def _of_mode(*modes: str) -> list[Block]:
    return [block for block in BLOCKS if block.mode in modes and block.language == "sh"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell.make(tmp_path_factory.mktemp("reader"))


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in _of_mode("run")}))
def test_commands_that_need_no_cluster_run(shell: Shell, page: str) -> None:
    for block in _of_mode("run"):
        if block.page == page:
            shell.run_well(block)


@pytest.fixture(scope="module")
def cluster(shell: Shell) -> Iterator[str]:
    """Start what the quick start starts, on a free port and a Ray of its own; yield the router's address."""
    (up,), (down,) = _of_mode("up"), _of_mode("down")
    try:
        shell.run_well(up, BATON_ROUTER__PORT="0", BATON_RAY__ADDRESS="local")
        record = json.loads((shell.folder / "state" / "cluster.json").read_text())
        yield record["url"].removeprefix("http://")
    finally:
        shell.run_well(down)


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("block", _of_mode("cluster"), ids=lambda block: block.place)
def test_commands_that_ask_a_cluster_run(shell: Shell, cluster: str, block: Block) -> None:
    shell.run_well(block, address=cluster)
