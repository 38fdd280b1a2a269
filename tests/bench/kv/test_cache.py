from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kv.cache import LAYERS, Job, blocks_for, empty_cache, full_cache, wipe, wrong_blocks

TOKENS = 32


@given(number=st.integers(1, 1000), blocks=st.integers(1, 64))
@settings(max_examples=50)
def test_blocks_of_a_job_lie_in_the_cache_once_each(number: int, blocks: int) -> None:
    job = Job(number, blocks * 16, blocks_for(blocks * 16))
    for ids in (job.source, job.target):
        assert len(set(ids.tolist())) == blocks
        assert 0 <= ids.min() <= ids.max() < job.cache_blocks
    assert job.num_bytes == blocks * LAYERS * 65536


def test_one_wrong_word_or_block_is_found() -> None:
    job = Job(1, TOKENS, blocks_for(TOKENS))
    source, target = full_cache(job.cache_blocks), empty_cache(job.cache_blocks)
    assert wrong_blocks(target, job) == LAYERS * job.num_blocks
    target[:, job.target] = source[:, job.source]
    assert wrong_blocks(target, job) == 0
    target[3, job.target[0], -8:] = 0
    assert wrong_blocks(target, job) == 1
    target[:, job.target] = source[:, job.source[::-1]]
    assert wrong_blocks(target, job) == LAYERS * job.num_blocks


def test_a_wiped_job_is_wrong_until_it_is_moved_again() -> None:
    job = Job(1, TOKENS, blocks_for(TOKENS))
    source, target = full_cache(job.cache_blocks), empty_cache(job.cache_blocks)
    target[:, job.target] = source[:, job.source]
    other = target.copy()
    wipe(target, job)
    assert wrong_blocks(target, job) == LAYERS * job.num_blocks
    untouched = np.setdiff1d(np.arange(job.cache_blocks), job.target)
    assert np.array_equal(target[:, untouched], other[:, untouched])
