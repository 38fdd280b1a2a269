"""Generators: equal seeds make equal workloads, and each is like the trace that it names."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import ConfigError
from sim.generators import RECIPES, generate, with_classes
from sim.workload import Workload


def made(
    name: str, *, size: int = 6000, seed: int = 0, gap_cv: float | None = None, limit: int | None = None
) -> Workload:
    return generate(name, num_requests=size, rate=5.0, seed=seed, gap_cv=gap_cv, max_total_tokens=limit)


@pytest.mark.parametrize("name", RECIPES)
def test_equal_seeds_make_equal_workloads(name: str) -> None:
    first, again, other = made(name), made(name), made(name, seed=1)
    for field in ("arrived_s", "prompt_tokens", "output_tokens", "prefix_ids"):
        assert getattr(first, field).tolist() == getattr(again, field).tolist()
    assert first.arrived_s.tolist() != other.arrived_s.tolist()
    assert first.prompt_tokens.tolist() != other.prompt_tokens.tolist()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("limit", [3000, None])
def test_every_workload_is_well_formed(name: str, limit: int | None) -> None:
    workload = made(name, limit=limit)
    assert len(workload) == 6000
    assert workload.arrived_s[0] == 0.0
    assert (np.diff(workload.arrived_s) >= 0).all()
    assert workload.prompt_tokens.min() >= 1
    assert workload.output_tokens.min() >= 1
    if limit is not None:
        assert (workload.prompt_tokens + workload.output_tokens).max() <= limit


# Means of the published sets: DistServe paper (chat, summarize), Azure README figures, Mooncake paper (agent).
@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [("chat", 755.5, 200.3), ("code", 2040, 28), ("summarize", 1738, 90.7), ("agent", 8596, 182)],
)
def test_the_means_are_those_of_the_trace_it_is_like(name: str, prompt: float, output: float) -> None:
    workload = made(name, size=20_000)
    assert workload.prompt_tokens.mean() == pytest.approx(prompt, rel=0.1)
    assert workload.output_tokens.mean() == pytest.approx(output, rel=0.26)


@pytest.mark.parametrize("gap_cv", [0.0, 1.0, 3.0])
def test_gaps_have_the_burstiness_asked_for(gap_cv: float) -> None:
    gaps_s = np.diff(made("chat", size=60_000, gap_cv=gap_cv).arrived_s)
    assert gaps_s.mean() == pytest.approx(1 / 5.0, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(gap_cv, rel=0.1, abs=1e-6)


def test_agents_repeat_what_was_said_about_as_often_as_in_the_public_trace() -> None:
    workload = made("agent", size=20_000)
    seen: set[int] = set()
    hits = 0
    for i in range(len(workload)):
        ids = workload.prefix_ids[workload.prefix_start[i] : workload.prefix_start[i + 1]].tolist()
        assert len(ids) == workload.prompt_tokens[i] // workload.prefix_block_tokens
        hits += next((n for n, block in enumerate(ids) if block not in seen), len(ids))
        seen.update(ids)
    assert hits / len(workload.prefix_ids) == pytest.approx(0.59, abs=0.04)


def test_classes_come_in_their_shares() -> None:
    workload = with_classes(made("chat"), [0.7, 0.0, 0.3], seed=1)
    counts = np.bincount(workload.slo_class, minlength=3) / len(workload)
    assert counts == pytest.approx([0.7, 0.0, 0.3], abs=0.02)
    assert with_classes(made("chat"), [0.7, 0.0, 0.3], seed=1).slo_class.tolist() == workload.slo_class.tolist()


@pytest.mark.parametrize(
    ("name", "limit", "gap_cv", "words"),
    [
        ("chitchat", None, 1.0, "there is no workload 'chitchat'; choose one of chat, code"),
        ("summarize", 500, 1.0, "hardly any request of the workload 'summarize' fits the model's 500 tokens"),
        ("agent", 1000, 1.0, "prompts of thousands of tokens"),
        ("chat", None, -1.0, "must not be negative"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, limit: int | None, gap_cv: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(name, size=300, limit=limit, gap_cv=gap_cv)
