"""The cache of the simulated engine matches whole leading blocks and forgets what was not used for longest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.simulated_prefix_cache import PrefixCache

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=24), min_size=1, max_size=12)


@given(prompts=PROMPTS, block_size=st.integers(1, 5))
def test_a_large_cache_matches_the_longest_prefix_ever_kept(prompts: list[list[int]], block_size: int) -> None:
    cache = PrefixCache(block_size=block_size, max_blocks=10_000)
    for i, prompt in enumerate(prompts):
        common = [next((n for n, (a, b) in enumerate(zip(p, prompt, strict=False)) if a != b), min(len(p), len(prompt)))
                  for p in prompts[:i]]  # fmt: skip
        longest = max((min(n, len(prompt) - 1) // block_size * block_size for n in common), default=0)
        assert cache.match(prompt) == longest
        cache.keep(prompt)


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = PrefixCache(block_size=2, max_blocks=3)
    cache.keep([1, 1])
    cache.keep([2, 2])
    cache.keep([3, 3])
    assert cache.match([1, 1, 9]) == 2  # used: now [2, 2] is the oldest
    cache.keep([4, 4])
    assert [cache.match([t, t, 9]) for t in (1, 2, 3, 4)] == [2, 0, 2, 2]
