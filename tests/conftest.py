"""What holds for every test: no time limit for single Hypothesis examples, for machines are slow and noisy at times."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

settings.register_profile("baton", deadline=None)
settings.load_profile("baton")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let no collection of garbage look at what was imported and collected: routers and clients collect as they start.

    That is two million objects in a run of all tests, half a second for each of some hundred collections.
    """
    gc.collect()
    gc.freeze()
