"""One hand-over under torture: what the two engines do about it, step by step, and what must hold when it ends.

Owns the order in which both ends act, drawn from a seeded generator, and the check of every byte that is served. The
steps of all hand-overs are taken in turn by one thread, which stands for the engine threads.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from bench.torture.engine import LAYERS
from bench.torture.side import Side

BOUND_S: Final = 30.0  # of one hand-over, whatever happens to it; its lease is shorter
_MOST_BLOCKS: Final = 12


@dataclass(frozen=True, slots=True)
class Script:
    """What befalls one hand-over beside the faults of its stream."""

    num_blocks: int
    known: int  # blocks that the decode side has in its prefix cache
    lease_s: float
    offer_at: int  # step in which the prefill side begins
    expect_at: int  # and the decode side
    abort_at: int | None = None  # the prefill request ends early
    preempt_at: int | None = None  # it loses its blocks, and computes on in others
    cancel_at: int | None = None  # the decode request ends early
    never_offered: bool = False
    never_expected: bool = False
    wrong_prompt: bool = False  # the legs rendered different prompts

    @classmethod
    def draw(cls, chance: random.Random) -> Script:
        """Most hand-overs are meant to go well; each of the rest has one thing wrong."""
        num_blocks = chance.randint(1, _MOST_BLOCKS)
        lease_s = 2.0 if chance.random() < 0.9 else chance.uniform(0.01, 0.2)
        wrong = chance.choice(["abort", "cancel", "offer", "expect", "prompt"]) if chance.random() < 0.2 else ""
        return cls(
            num_blocks=num_blocks,
            known=chance.randrange(num_blocks),
            lease_s=lease_s,
            offer_at=chance.randint(0, 3),
            expect_at=chance.randint(0, 3),
            abort_at=chance.randint(0, 8) if wrong == "abort" else None,
            preempt_at=chance.randint(0, 8) if chance.random() < 0.1 else None,
            cancel_at=chance.randint(0, 8) if wrong == "cancel" else None,
            never_offered=wrong == "offer",
            never_expected=wrong == "expect",
            wrong_prompt=wrong == "prompt",
        )


class HandOver:
    """From both ends' first step to the last block given back."""

    def __init__(self, number: int, prefill: Side, decode: Side, chance: random.Random, counts: Counter[str]) -> None:
        self.transfer_id = f"t{number}"
        self._script = Script.draw(chance)
        self._seed = number
        self._prefill, self._decode = prefill, decode
        self._epochs = prefill.epoch, decode.epoch
        self._chance = chance
        self._counts = counts
        self._began_s = time.monotonic()
        self._step = 0
        self._parts_staged = 0  # of both chunks, each with all layers
        self._source: list[int] | None = None
        self._target: list[int] | None = None
        self._is_offered = self._is_staged = self._is_preempted = False
        self._has_sent = self._script.never_offered
        self._has_received = self._script.never_expected
        self._is_expected = self._is_cancelled = False

    def step(self) -> bool:
        """Do what both engines do in one step; return whether anything is left to do."""
        self._notice_deaths()
        if not self._has_sent and self._step >= self._script.offer_at:
            self._step_prefill()
        if not self._has_received and self._step >= self._script.expect_at:
            self._step_decode()
        self._step += 1
        if not (self._has_sent and self._has_received) and time.monotonic() - self._began_s > BOUND_S:
            self._counts["HUNG"] += 1
            self._has_sent = self._has_received = True
        return not (self._has_sent and self._has_received)

    def _notice_deaths(self) -> None:
        """An engine that died took its requests and its memory with it."""
        if self._prefill.epoch != self._epochs[0] and not self._has_sent:
            self._has_sent = True
            self._counts["prefill died"] += 1
        if self._decode.epoch != self._epochs[1] and not self._has_received:
            self._has_received = True
            self._counts["decode died"] += 1

    def _step_prefill(self) -> None:
        """Compute a layer of a part of the prompt, and stage it; at the end, blocks are used anew when they may be."""
        script = self._script
        if self._is_staged:
            if self._prefill.let_go(self.transfer_id):
                self._end_prefill()
            return
        if self._source is None:
            self._source = self._prefill.pool.take(script.num_blocks, self._chance)
            if self._source is None:
                return  # later
            self._prefill.pool.fill(self._source, self._seed)
            if not self._is_offered:
                digest = "another" if script.wrong_prompt else str(self._seed)
                self._prefill.offer(self._decode, self.transfer_id, digest, script.num_blocks, script.lease_s)
                self._is_offered = True
        if script.abort_at is not None and self._step >= script.abort_at:
            self._prefill.abort(self.transfer_id)
            self._counts["aborted"] += 1
            self._is_staged = True
            return
        if script.preempt_at is not None and self._step >= script.preempt_at and not self._is_preempted:
            self._preempt()
            return
        self._stage_part(self._source)
        if self._parts_staged == 2 * LAYERS:
            self._prefill.finish(self.transfer_id)
            self._counts["staged"] += 1
            self._is_staged = True

    def _stage_part(self, source: list[int]) -> None:
        script = self._script
        half = script.num_blocks // 2
        part, layer = divmod(self._parts_staged, LAYERS)
        first, end = ((0, half), (half, script.num_blocks))[part]
        if end > first:
            self._prefill.stage(self.transfer_id, layer, first, source[first:end])
        self._parts_staged += 1

    def _preempt(self) -> None:
        assert self._source is not None
        self._counts["preempted"] += 1
        self._is_preempted = True
        self._prefill.call_back(self.transfer_id)
        self._prefill.pool.give_back(self._source)
        self._source = None

    def _end_prefill(self) -> None:
        assert self._source is not None
        self._prefill.pool.give_back(self._source)
        self._has_sent = True

    def _step_decode(self) -> None:
        """Reserve blocks, wait for the hand-over's end; then check what would be served, and free the blocks."""
        script = self._script
        if not self._is_expected:
            self._target = self._decode.pool.take(script.num_blocks - script.known, self._chance)
            if self._target is not None:
                self._is_expected = True
                self._decode.expect(self.transfer_id, str(self._seed), script.known, self._target, script.lease_s)
            return
        request_id = f"{self.transfer_id}-d"
        if request_id in self._decode.finished:
            self._decode.finished.discard(request_id)
            self._check_served()
        elif script.cancel_at is not None and self._step >= script.cancel_at and not self._is_cancelled:
            self._is_cancelled = True
            self._decode.cancel(self.transfer_id)

    def _check_served(self) -> None:
        assert self._target is not None
        bad = [block for block in self._target if block in self._decode.bad]
        self._decode.bad.difference_update(bad)
        if self._is_cancelled:  # nobody reads them
            self._counts["cancelled"] += 1
        else:
            served = self._target[: self._target.index(bad[0])] if bad else self._target
            self._counts["recomputed" if bad else "landed"] += 1
            self._counts["WRONG"] += self._decode.pool.differs(
                served, self._seed, first=self._script.known, of=self._script.num_blocks
            )
        self._decode.pool.give_back(self._target)
        self._has_received = True
