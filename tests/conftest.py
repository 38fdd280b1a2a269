"""What holds for every test: Hypothesis without a time limit for single examples, for machines are slow at times.

Owns too in which order the files come, and which of them may run side by side.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings

from router.compiled import prefer_compiled

# Read when gRPC is first imported. Its handlers of fork write into what a child says, and no child here speaks gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Tests run the sources, which are what changes; but those that tests/router/test_compiled.py starts.
if os.environ.get("BATON_TEST_COMPILED") == "1":
    prefer_compiled()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("baton", deadline=None)
settings.load_profile("baton")

ROOT: Final = Path(__file__).resolve().parents[1]
# In a checkout that is new the simulator takes 45 s of CPU to compile. This file has it compiled first, while files
# beside it need none; those that simulate come last, and find it compiled.
COMPILES: Final = "tests/bench/test_fidelity_real.py"
SIMULATE: Final = (
    *("tests/sim/", "tests/bench/test_", "tests/bench/fleet/", "tests/bench/pd_or_pool/"),
    *("tests/integration/test_replay.py", "tests/test_cli.py"),
)


@pytest.hookimpl(optionalhook=True)  # only where tests run side by side
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Say how many processes `-n auto` is: one more than cores, for tests wait a quarter of their time."""
    return min(len(os.sched_getaffinity(0)), 4) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give a process a whole file, for its tests share what they start, and one process all files with real engines.

    So the engines that a session shares are started once, and no two files start engines at a time.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "engines" if "pytest.mark.engine" in (ROOT / file).read_text(encoding="utf-8") else file

    config.option.loadscopereorder = False  # it would begin with the files of the most tests, long or not
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files in their order, the longest first; within a file it stays as it is."""

    def turn(item: pytest.Item) -> tuple[bool, bool, bool]:
        is_long = item.get_closest_marker("engine") is not None
        return not item.nodeid.startswith(COMPILES), not is_long, item.nodeid.startswith(SIMULATE)

    items.sort(key=turn)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let no collection of garbage look at what was imported and collected: routers and clients collect as they start.

    That is two million objects in a run of all tests, half a second for each of some hundred collections.
    """
    gc.collect()
    gc.freeze()
