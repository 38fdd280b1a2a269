"""Prompts of known token counts, made of words that cost one token each wherever they stand.

Owns the choice of words by counting, and the text. How tokens are counted (a local tokenizer, the server's own, or the
usage it reports) is given. Must not know endpoints.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from core.errors import ConfigError

CountTokens = Callable[[str], Awaitable[int]]
_CANDIDATES: Final = (
    *("the", "and", "of", "to", "in", "is", "that", "for", "it", "with", "as", "his", "on", "be", "at", "by", "this"),
    *("had", "not", "are", "but", "from", "or", "have", "an", "they", "which", "one", "you", "were", "all", "her"),
    *("she", "there", "would", "their", "we", "him", "been", "has", "when", "who", "will", "no", "more", "if", "out"),
)
_REPEATS: Final = 16
_FEWEST: Final = 6  # words; fewer make prompts that all look alike
_RING: Final = 1 << 14  # words that prompts are slices of
_LEAD: Final = 6  # words at the beginning that no other prompt has
_CHECK_WORDS: Final = 64


@dataclass(frozen=True)
class Vocabulary:
    """Words, and what text of them costs: `base_tokens` for a prompt and `word_tokens` for each word."""

    words: tuple[str, ...]
    word_tokens: float = 1.0
    base_tokens: int = 0  # beginning of sequence, chat template

    @property
    def is_exact(self) -> bool:
        """Whether every length can be met."""
        return self.word_tokens == 1.0

    def num_words(self, tokens: int) -> int:
        """Say how many words make a prompt of so many tokens; one at least."""
        return max(1, round((tokens - self.base_tokens) / self.word_tokens))

    def text(self, key: int, num_words: int) -> str:
        """Make text that begins like that of no other key, the same for the same key."""
        lead = []
        left = key
        for _ in range(min(_LEAD, num_words)):
            left, digit = divmod(left, len(self.words))
            lead.append(self.words[digit])
        rest = num_words - len(lead)
        if rest <= 0:
            return " ".join(lead)
        ring, starts = self._ring
        at = key * 7919 % (_RING // 2)
        whole, end = divmod(at + rest, _RING)
        body = (ring * (whole + 1))[starts[at] : whole * len(ring) + starts[end]]
        return " ".join(lead) + " " + body.rstrip()

    @cached_property
    def _ring(self) -> tuple[str, list[int]]:
        """Hold words in one string, each with a blank behind it, and where each begins."""
        words = random.Random(1).choices(self.words, k=_RING)
        starts, at = [], 0
        for word in words:
            starts.append(at)
            at += len(word) + 1
        return " ".join(words) + " ", starts


async def learn_vocabulary(count: CountTokens) -> Vocabulary:
    """Find words that cost the same everywhere, one token each where the tokenizer has such.

    Raises ConfigError when the counts make no sense.
    """
    costs = {word: await _cost_of(word, count) for word in _CANDIDATES}
    fair = [cost for cost in costs.values() if cost > 0]
    if not fair:
        raise ConfigError("the server counts no tokens of a prompt; name a folder with its tokenizer by --tokenizer")
    usual = 1.0 if fair.count(1.0) >= _FEWEST else Counter(fair).most_common(1)[0][0]
    words = tuple(word for word, cost in costs.items() if cost == usual)
    if len(words) < _FEWEST:
        words = tuple(word for word, cost in costs.items() if cost > 0)
        usual = sum(costs[word] for word in words) / len(words)
    mixed = await count(Vocabulary(words).text(12345, _CHECK_WORDS))
    return Vocabulary(words, usual, max(0, round(mixed - usual * _CHECK_WORDS)))


async def _cost_of(word: str, count: CountTokens) -> float:
    return (await count(_repeated(word, _REPEATS + 1)) - await count(word)) / _REPEATS


def _repeated(word: str, times: int) -> str:
    return " ".join([word] * times)


def with_prefix(vocabulary: Vocabulary, blocks: Sequence[int], block_tokens: int, key: int, tokens: int) -> str:
    """Make a prompt that begins with shared blocks, each the same text wherever its id comes, and ends in its own."""
    per_block = max(1, round(block_tokens / vocabulary.word_tokens))
    shared = [vocabulary.text((1 << 40) + block, per_block) for block in blocks]
    own = vocabulary.num_words(tokens) - per_block * len(blocks)
    return " ".join([*shared, vocabulary.text(key, own)] if own > 0 else shared)
