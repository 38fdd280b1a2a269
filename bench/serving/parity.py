"""Whether the pair of a prefill and a decode worker answers what one worker alone answers, to the letter.

Owns the prompts, how one worker alone is asked for, and what counts as equal. Asks a running Baton router only: its
headers tell which workers answered. A request for the log probabilities of its prompt is served whole (docs/router.md),
so that the same greedy request, with and without them, goes both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.serving.document import Document, ask
from bench.serving.openai_requests import COMPLETIONS, EXPLAIN
from bench.serving.prompt_text import Vocabulary
from bench.serving.session import BenchSpec, Session

PROMPT_TOKENS: Final = (700, 350, 1000, 180)
OUTPUT_TOKENS: Final = 24
# Two tokens whose log probabilities differ by less may change places with the order of sums (bfloat16 has 8 bits).
TIE: Final = 0.05
_KEYS: Final = 1 << 33  # of prompts no benchmark uses


@dataclass(frozen=True, slots=True)
class Parity:
    """What came of it."""

    asked: int
    paired: int  # of those, answered by a pair and by one worker
    differing: tuple[str, ...]  # of the paired: what differs, beyond ties

    @property
    def is_broken(self) -> bool:
        """Whether a pair answered otherwise than one worker."""
        return bool(self.differing)

    def words(self) -> str:
        """Say it in one line."""
        if not self.paired:
            return f"not tested: none of {self.asked} prompts was served by a pair"
        if self.differing:
            return f"broken in {len(self.differing)} of {self.paired} prompts: {self.differing[0]}"
        return f"{self.paired} greedy answers of a pair are equal to those of one worker alone"


async def check_parity(session: Session, spec: BenchSpec, vocabulary: Vocabulary) -> Parity:
    """Ask both ways, one after the other, on an idle system. Raises BatonError when nothing answers."""
    model = await session.model()
    room = (model.max_model_len or max(PROMPT_TOKENS) * 2) - OUTPUT_TOKENS
    differing, paired = [], 0
    for number, tokens in enumerate(PROMPT_TOKENS):
        prompt = vocabulary.text(_KEYS + number, vocabulary.num_words(min(tokens, room)))
        body: dict[str, object] = {
            "model": spec.model or model.name,
            "prompt": prompt,
            "max_tokens": OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 2,
        }
        pair = await ask(session.pool, session.endpoint, COMPLETIONS, body, headers=EXPLAIN)
        alone = await ask(session.pool, session.endpoint, COMPLETIONS, body | {"prompt_logprobs": 0}, headers=EXPLAIN)
        if pair.status != 200 or alone.status != 200:
            continue
        if "x-baton-prefill" in pair.headers and "x-baton-prefill" not in alone.headers:
            paired += 1
            if found := difference(pair, alone):
                workers = f"{pair.headers['x-baton-prefill']} and {pair.headers.get('x-baton-decode')}"
                differing.append(f"{workers}, {tokens} prompt tokens: {found}")
    return Parity(len(PROMPT_TOKENS), paired, tuple(differing))


def difference(pair: Document, alone: Document) -> str:
    """Say where two greedy answers part; empty: they are equal, or part at a tie."""
    ours, theirs = _choice(pair), _choice(alone)
    ours_text, theirs_text = str(ours.get("text")), str(theirs.get("text"))
    if ours_text == theirs_text:
        return ""
    ours_tokens, theirs_tokens = _tokens(ours), _tokens(theirs)
    at = next((i for i, (a, b) in enumerate(zip(ours_tokens, theirs_tokens, strict=False)) if a != b), None)
    if at is not None and _gap(theirs, at) < TIE:
        return ""
    where = f"token {at + 1}" if at is not None else "the text"
    return f"{where} differs ({ours_text[:40]!r} and {theirs_text[:40]!r})"


def _choice(answer: Document) -> dict[str, object]:
    choices = answer.json().get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _tokens(choice: dict[str, object]) -> Sequence[object]:
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
    return tokens if isinstance(tokens, list) else ()


def _gap(choice: dict[str, object], at: int) -> float:
    """Give the distance of the two likeliest tokens; inf where it is not told."""
    logprobs = choice.get("logprobs")
    tops = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(tops, list) or at >= len(tops) or not isinstance(tops[at], dict) or len(tops[at]) < 2:
        return float("inf")
    best, second = sorted((float(value) for value in tops[at].values()), reverse=True)[:2]
    return best - second
