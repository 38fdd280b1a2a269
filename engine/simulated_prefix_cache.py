"""Which prompts' blocks the simulated engine still has, so that it can say what of a prompt it need not compute.

Owns the order of eviction, least recently used first. Must not know sequences: the blocks of running requests are
counted apart from these, where a real engine has one pool for both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence


class PrefixCache:
    """Keeps whole blocks of prompts, each known by all tokens up to its end."""

    def __init__(self, *, block_size: int, max_blocks: int) -> None:
        self._block_size = block_size
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()  # all and only blocks kept, least recently used first

    def match(self, prompt: Sequence[int]) -> int:
        """Count the leading tokens of `prompt` that are kept, in whole blocks; never the last token, as in vLLM."""
        num_blocks = 0
        for key in self._keys(prompt[:-1]):
            if key not in self._blocks:
                break
            self._blocks.move_to_end(key)
            num_blocks += 1
        return num_blocks * self._block_size

    def keep(self, prompt: Sequence[int]) -> None:
        """Take the whole blocks of a computed prompt, and drop the least recently used beyond the limit."""
        for key in self._keys(prompt):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def _keys(self, prompt: Sequence[int]) -> Iterator[int]:
        key = 0
        for end in range(self._block_size, len(prompt) + 1, self._block_size):
            key = hash((key, *prompt[end - self._block_size : end]))
            yield key
