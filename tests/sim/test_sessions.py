"""Sessions: every turn's prompt begins with the whole turn before it, and never outgrows the model."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.sessions import draw_sessions


@given(st.integers(0, 50), st.sampled_from([2048, 5000, 40_000]))
def test_prompts_are_prefixes_and_fit(seed: int, limit: int) -> None:
    workload = draw_sessions(np.random.default_rng(seed), "agent", np.arange(200.0), max_total_tokens=limit)
    assert (workload.prompt_tokens + workload.output_tokens).max() <= limit
    known: dict[int, tuple[int, ...]] = {}
    for i in range(len(workload)):
        ids = tuple(workload.prefix_ids[workload.prefix_start[i] : workload.prefix_start[i + 1]].tolist())
        assert len(ids) == workload.prompt_tokens[i] // workload.prefix_block_tokens
        for place, block in enumerate(ids):
            # A block means the same text only after the same blocks.
            assert known.setdefault(block, ids[:place]) == ids[:place]
