"""Which prefill and decode workers may hand over to each other: those whose self-test agreed and that sent no wrong KV.

Owns the state of every pair, when it is to be tested, and for how long it is left out. Pure: it is told who is there,
what tests said and what decode workers report, and when. Must not know how a test is run or KV compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from core.types import Quarantined, Role, WorkerRecord, WorkerView

SIMULATED: Final = "simulated:"  # scheme of the KV address of an engine that has no KV
FIRST_RETRY_S: Final = 30.0  # each one after it comes twice as late, up to the longest
LONGEST_RETRY_S: Final = 900.0


class Pair(NamedTuple):
    """A prefill and a decode worker, by id."""

    prefill: str
    decode: str


class Trust(StrEnum):
    """How far a pair has come."""

    UNTESTED = "untested"  # its self-test is due, or runs
    TRUSTED = "trusted"
    FAILED = "failed"  # its self-test did; it is tested again later
    QUARANTINED = "quarantined"  # decode got wrong KV; tested again afterwards


@dataclass(frozen=True, slots=True)
class PairReport:
    """One pair as people are told of it."""

    prefill: str
    decode: str
    trust: Trust
    reason: str = ""
    retry_in_s: float = 0.0  # until it is tested again


@dataclass(slots=True)
class _State:
    epochs: tuple[int, int]
    trust: Trust
    reason: str = ""
    retry_s: float = 0.0  # not tested before this
    failures: int = 0  # in a row
    runs: bool = False  # its test does
    seen_times: int = 0  # quarantines of it that were taken notice of


class PairTrust:
    """All and only the pairs of workers that are there and have equal fingerprints."""

    def __init__(self, *, self_test: bool) -> None:
        """With `self_test` a pair is used once its test has agreed; without it, from the start."""
        self._self_test = self_test
        self._pairs: dict[Pair, _State] = {}
        self._there: tuple[tuple[WorkerRecord, tuple[Quarantined, ...]], ...] = ()  # as followed last

    def follow(self, workers: Iterable[WorkerView], now_s: float) -> None:
        """Take up new pairs, forget those that are gone or restarted, and heed what decode workers report."""
        workers = tuple(workers)
        there = tuple((worker.record, worker.state.quarantined) for worker in workers)
        if there == self._there:  # nothing but their load has changed
            return
        self._there = there
        senders = [w for w in workers if w.record.role is Role.PREFILL]
        receivers = [w for w in workers if w.record.role is Role.DECODE]
        before, self._pairs = self._pairs, {}
        for receiver in receivers:
            for sender in senders:
                if sender.hello.fingerprint == receiver.hello.fingerprint:
                    pair = Pair(sender.record.worker_id, receiver.record.worker_id)
                    state = self._pairs[pair] = self._state(before.get(pair), sender, receiver)
                    _heed(state, receiver, pair.prefill, now_s)

    def _state(self, known: _State | None, sender: WorkerView, receiver: WorkerView) -> _State:
        epochs = sender.record.epoch, receiver.record.epoch
        if known is not None and known.epochs == epochs:
            return known
        has_kv = not (sender.hello.kv_address + receiver.hello.kv_address).startswith(SIMULATED)
        return _State(epochs, Trust.UNTESTED if self._self_test and has_kv else Trust.TRUSTED)

    def allows(self, prefill: str, decode: str) -> bool:
        """Say whether requests may go to two workers; not to two that were never seen, if pairs are tested."""
        state = self._pairs.get(Pair(prefill, decode))
        return not self._self_test if state is None else state.trust is Trust.TRUSTED

    def due(self, now_s: float, *, limit: int) -> list[Pair]:
        """Choose pairs to test now, no worker twice, `limit` with those that run; who has no partner yet goes first."""
        running = [pair for pair, state in self._pairs.items() if state.runs]
        busy = {worker for pair in running for worker in pair}
        partnered = {w for pair, state in self._pairs.items() if state.trust is Trust.TRUSTED for w in pair}
        waiting = [pair for pair, state in self._pairs.items() if self._is_due(state, now_s)]
        chosen: list[Pair] = []
        for pair in sorted(waiting, key=lambda pair: (sum(worker in partnered for worker in pair), pair)):
            if len(running) + len(chosen) < limit and not busy.intersection(pair):
                chosen.append(pair)
                busy.update(pair)
        return chosen

    def _is_due(self, state: _State, now_s: float) -> bool:
        return state.trust is not Trust.TRUSTED and not state.runs and now_s >= state.retry_s

    def next_due_s(self) -> float | None:
        """Say when a pair that waits is to be tested; None: none waits."""
        times = [s.retry_s for s in self._pairs.values() if s.trust is not Trust.TRUSTED and not s.runs]
        return min(times, default=None)

    def began(self, pair: Pair) -> tuple[int, int]:
        """Note that a pair's test runs; return the epochs that it is of."""
        state = self._pairs[pair]
        state.runs = True
        return state.epochs

    def ended(self, pair: Pair, epochs: tuple[int, int], reason: str, now_s: float) -> None:
        """Take the outcome of a test, "" for a good one; that of workers that are gone or restarted is dropped."""
        state = self._pairs.get(pair)
        if state is None or state.epochs != epochs or not state.runs:
            return
        state.runs = False
        if now_s < state.retry_s:  # put into quarantine meanwhile
            return
        if not reason:
            state.trust, state.reason, state.failures = Trust.TRUSTED, "", 0
            return
        state.trust, state.reason = Trust.FAILED, reason
        state.retry_s = now_s + min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(state.failures, 30))
        state.failures += 1

    def report(self, now_s: float) -> Sequence[PairReport]:
        """List every pair, by workers."""
        return [
            PairReport(*pair, state.trust, state.reason, max(0.0, state.retry_s - now_s))
            for pair, state in sorted(self._pairs.items())
        ]


def _heed(state: _State, receiver: WorkerView, prefill: str, now_s: float) -> None:
    """Put a pair into quarantine for as long as its decode worker said when it was first heard of."""
    for said in receiver.state.quarantined:
        if (said.worker_id, said.epoch) == (prefill, state.epochs[0]) and said.times > state.seen_times:
            state.seen_times = said.times
            state.trust, state.reason = Trust.QUARANTINED, said.reason
            state.retry_s = now_s + said.left_s
