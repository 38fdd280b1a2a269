"""Beliefs against the definition: the longest beginning shared with a prompt that went there, in whole blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.types import Fingerprint, Role, WorkerHello
from sim.prefix_beliefs import PrefixBeliefs
from sim.workload import Workload

WORKERS = [
    WorkerHello(name, Role.PREFILL, 1, "", 1 << 30, "", 1 << 20, Fingerprint("", "", "", "", "", 16, "", 1, 1, ""))
    for name in ("a", "b")
]
prompts = st.lists(st.lists(st.integers(0, 2), max_size=12).map(tuple), min_size=1, max_size=12)


def workload_of(paths: list[tuple[int, ...]]) -> Workload:
    """Give every beginning of a path an id of its own, as prefix hashes do."""
    ids: dict[tuple[int, ...], int] = {}
    flat = [ids.setdefault(path[:end], len(ids)) for path in paths for end in range(1, len(path) + 1)]
    ones = np.ones(len(paths), np.int64)
    return Workload(
        "paths",
        np.arange(len(paths), dtype=np.float64),
        ones * 8192,
        ones,
        prefix_start=np.concatenate(([0], np.cumsum([len(path) for path in paths]))).astype(np.int64),
        prefix_ids=np.array(flat, np.int64),
    )


def shared(path: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b), min(len(path), len(other)))


@given(prompts, st.data())
def test_beliefs_are_the_longest_shared_beginnings(paths: list[tuple[int, ...]], data: st.DataObject) -> None:
    beliefs = PrefixBeliefs(workload_of(paths), WORKERS)
    went: dict[str, list[tuple[int, ...]]] = {"a": [], "b": []}
    for request, path in enumerate(paths):
        known = {name: 512 * max((shared(path, other) for other in others), default=0) for name, others in went.items()}
        assert beliefs.cached(request) == tuple((name, tokens) for name, tokens in known.items() if tokens)
        name = data.draw(st.sampled_from(("a", "b")))
        beliefs.record(name, request)
        went[name].append(path)


def test_without_prefixes_nothing_is_believed() -> None:
    plain = Workload("plain", np.zeros(1), np.ones(1, np.int64), np.ones(1, np.int64))
    beliefs = PrefixBeliefs(plain, WORKERS)
    beliefs.record("a", 0)
    assert beliefs.cached(0) == ()
