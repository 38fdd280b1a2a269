"""Sessions of agents: turns that repeat all that was said before, over system prompts that many share.

Owns the shape of a session and its figures. Must not know the other generators.

The public figures that it imitates are those of Mooncake's tool and agent trace (Qin et al., FAST 2025): prompts of
8,596 tokens and outputs of 182 in the mean, 59 % of the prompt blocks seen before.
"""

from __future__ import annotations

import numpy as np

from core.errors import ConfigError
from sim.workload import Floats, Ints, Workload

_BLOCK_TOKENS = 512
_NUM_APPS = 24  # system prompts, with tools; the first few have most of the traffic
_APP_BLOCKS = (2, 9)  # blocks of 512 tokens, from to below
_TURNS_MEAN = 1.9  # geometric
_OPEN_SESSIONS = 64  # that take turns
_NEW_TEXT_MEDIAN, _NEW_TEXT_SIGMA = 2250, 0.9  # tokens that a turn adds: tool results, files, a question
_OUTPUT_MEDIAN, _OUTPUT_SIGMA = 120, 0.9


class _Ids:
    """Names for blocks never seen before."""

    def __init__(self) -> None:
        self._next = 0

    def fresh(self, count: int) -> list[int]:
        begin = self._next
        self._next += count
        return list(range(begin, self._next))


class _Session:
    """One conversation with one application."""

    def __init__(self, system: list[int], turns: int) -> None:
        self.blocks = list(system)  # whole blocks of all that was said
        self.loose_tokens = 0  # said beyond the last whole block
        self.turns_left = turns

    def say(self, tokens: int, ids: _Ids) -> None:
        """Add text; whole blocks of it get ids."""
        whole, self.loose_tokens = divmod(self.loose_tokens + tokens, _BLOCK_TOKENS)
        self.blocks += ids.fresh(whole)

    @property
    def tokens(self) -> int:
        """Length of all that was said."""
        return len(self.blocks) * _BLOCK_TOKENS + self.loose_tokens


def draw_sessions(rng: np.random.Generator, name: str, arrived_s: Floats, *, max_total_tokens: int | None) -> Workload:
    """Make one request for each arrival; a session ends before it would exceed `max_total_tokens`.

    Raises ConfigError when the shortest system prompt with one turn does not fit.
    """
    size = len(arrived_s)
    limit = max_total_tokens or (1 << 62)
    if limit < 4 * _BLOCK_TOKENS:
        raise ConfigError(
            f"the workload {name!r} has prompts of thousands of tokens and the model takes {limit:,}; choose another "
            "workload, or a model with a longer context"
        )
    ids = _Ids()
    apps = [ids.fresh(int(blocks)) for blocks in rng.integers(*_APP_BLOCKS, _NUM_APPS)]
    apps = [app[: max(1, limit // (3 * _BLOCK_TOKENS))] for app in apps]
    new_tokens = _lognormal(rng, size, _NEW_TEXT_MEDIAN, _NEW_TEXT_SIGMA)
    outputs = _lognormal(rng, size, _OUTPUT_MEDIAN, _OUTPUT_SIGMA).clip(1, limit // 4)
    popularity = 1.0 / np.arange(1, _NUM_APPS + 1)
    app_of = rng.choice(_NUM_APPS, size, p=popularity / popularity.sum())
    turns = rng.geometric(1.0 / _TURNS_MEAN, size)
    seat_of = rng.integers(0, _OPEN_SESSIONS, size)
    seats: list[_Session | None] = [None] * _OPEN_SESSIONS
    prompts = np.empty(size, np.int64)
    prefixes: list[list[int]] = []
    for i in range(size):
        session = seats[seat_of[i]]
        if session is None or session.turns_left == 0 or session.tokens + int(new_tokens[i] + outputs[i]) > limit:
            session = seats[seat_of[i]] = _Session(apps[app_of[i]], int(turns[i]))
        room = limit - session.tokens - int(outputs[i])
        session.say(min(int(new_tokens[i]), room), ids)
        prompts[i] = session.tokens
        prefixes.append(list(session.blocks))
        session.say(int(outputs[i]), ids)
        session.turns_left -= 1
    return Workload(
        name=name,
        arrived_s=arrived_s,
        prompt_tokens=prompts,
        output_tokens=outputs,
        prefix_start=np.concatenate(([0], np.cumsum([len(p) for p in prefixes]))).astype(np.int64),
        prefix_ids=np.array([i for prefix in prefixes for i in prefix], np.int64),
        prefix_block_tokens=_BLOCK_TOKENS,
    )


def _lognormal(rng: np.random.Generator, size: int, median: float, sigma: float) -> Ints:
    drawn: Floats = rng.lognormal(np.log(median), sigma, size)
    return np.rint(drawn).clip(1).astype(np.int64)
