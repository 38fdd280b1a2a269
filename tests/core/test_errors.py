"""The tree of errors: stable names, drawn in full, none doubled."""

from __future__ import annotations

import inspect
import re

import pytest

from core import errors
from core.errors import BatonError, ConfigError, KVTransferError, NotRunning, Overloaded, RequestRejected, WorkerError

ALL = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, BatonError)]
LEAVES = [kind for kind in ALL if not kind.__subclasses__() or kind is ConfigError]


def test_the_drawing_shows_all_errors_under_their_parents() -> None:
    drawn: list[tuple[str, str]] = []
    parents = ["BatonError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"(?P<indent>[ │]*)[├└]── (?P<name>\w+)", line)
        if match:
            depth = (len(match["indent"]) - 4) // 4 + 1
            parents[depth:] = [match["name"]]
            drawn.append((match["name"], parents[depth - 1]))
    assert sorted(drawn) == sorted((kind.__name__, kind.__base__.__name__) for kind in ALL if kind is not BatonError)


def test_names_are_stable_identifiers_and_unique() -> None:
    names = [kind.name for kind in ALL]
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_says_what_it_means(kind: type[BatonError]) -> None:
    assert kind.__doc__
    assert kind.__doc__.rstrip().endswith(".")


def test_only_losses_of_a_worker_are_retriable() -> None:
    assert sorted(kind.name for kind in ALL if kind.retriable) == ["engine_failed", "worker_draining", "worker_lost"]


def test_a_rejection_carries_the_field_and_when_to_return() -> None:
    error = Overloaded("full", param="model", retry_after_s=1.5)
    assert (str(error), error.param, error.retry_after_s) == ("full", "model", 1.5)
    assert isinstance(error, RequestRejected)
    assert RequestRejected("x").retry_after_s is None


def test_the_branches_do_not_overlap() -> None:
    branches = (ConfigError, NotRunning, RequestRejected, WorkerError, KVTransferError)
    for leaf in LEAVES:
        assert sum(issubclass(leaf, branch) for branch in branches) == 1
