"""Which worker is believed to hold which beginnings of prompts in its prefix cache.

Owns the belief: built from the router's own decisions, bounded by each worker's cache and by the memory given to it,
and corrected by what workers report. Knows prompts only as chains of 64-bit hashes of their pieces; must not know text.

A piece is one entry of one small dict: its hash, and one integer that packs all that is known of it. Many small dicts
and not a large one, because a dict under churn is rebuilt as a whole from time to time, which must not be felt.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

BYTES_PER_TOKEN: Final = 4  # of English text in common tokenizers; pieces are cut, and at first counted, by it
# (tokens of a piece, up to this many tokens of the prompt): fine where most prompts part, coarse where that costs.
PIECE_SIZES: Final = ((64, 256), (128, 1024), (256, 2048), (512, 1 << 20))

# A piece's integer: was it used since it was last considered for eviction, which of PIECE_SIZES it has, how many tokens
# it really holds for each counted one (in 1/256; 0: unknown), and from there two bits for each worker: held, and used
# since the worker's oldest beliefs were last looked through.
_TOUCHED: Final = 1
_SIZE_SHIFT, _SIZE_MASK = 1, 3
_RATIO_SHIFT, _RATIO_MASK, _RATIO_ONE = 3, 0xFFF, 256
_WORKERS_SHIFT: Final = 16

_WAYS: Final = 170  # pieces of one dict: the most that CPython keeps in a table of 512 slots when it rebuilds it
_INT_BYTES: Final = 48  # a 64-bit int takes 36, allocated in steps of 16
_LOG_ENTRY_BYTES: Final = 18  # 8, grown by an eighth, and as many read entries before they are cut off
_LOG_SHARE: Final = 0.125  # of the memory, for the workers' logs
_MAX_MEMOS: Final = 256
_SPARE_SHARE: Final = 8  # one position more for so many workers, to be had while those of former ones are cleared
_CLEARED_PER_CALL: Final = 32  # log entries of workers that left
_TRUST_GAIN: Final = 1 / 16  # of one report
_LEAST_TRUST: Final = 0.5
_RATIO_GAIN: Final = 1 / 64
_MOST_LOST: Final = 16  # a report makes at most this part of a worker's beliefs forgotten

_Pairs = tuple[tuple[tuple[str, int], ...], dict[str, int]]  # the same in two forms


def _piece_sizes() -> list[int]:
    """List which of PIECE_SIZES each piece of a prompt has."""
    sizes: list[int] = []
    end = 0
    for size, (tokens, until) in enumerate(PIECE_SIZES):
        sizes += [size] * ((until - end) // tokens)
        end = until
    return sizes


_SIZES: Final = tuple(size << _SIZE_SHIFT for size in _piece_sizes())
_TOKENS: Final = tuple(PIECE_SIZES[size][0] for size in _piece_sizes())
# Where each piece ends, in tokens of BYTES_PER_TOKEN; what comes after the last is not looked at.
PIECE_ENDS: Final = tuple(accumulate(_TOKENS))


@dataclass(slots=True)
class _Worker:
    """One position in the pieces' integers, and what is believed of the worker that has it."""

    worker_id: str
    epoch: int
    held: int  # its two bits
    used: int
    max_tokens: int
    block_size: int
    trust: float = 1.0  # share of what it was believed to have cached that it had, of late
    num_tokens: int = 0  # of all and only the pieces that carry its bit, as they are counted
    log: array[int] = field(default_factory=lambda: array("Q"))  # every piece that carries its bit, oldest first; more
    head: int = 0  # entries of the log that were read


class PrefixIndex:
    """A belief that is cheap to ask, to extend and to correct; none of its calls takes time that grows with it."""

    def __init__(self, max_bytes: int, *, max_workers: int = 128) -> None:
        """Take a bound on memory, 0 for an index that knows nothing, and how many workers are told apart."""
        num_positions = max_workers + max_workers // _SPARE_SHARE + 1
        value_bytes = 24 + 4 * -(-(_WORKERS_SHIFT + 2 * num_positions) // 30)
        table_bytes = sys.getsizeof(dict.fromkeys(range(_WAYS + 1), 0))
        bucket_bytes = table_bytes + 8 + _WAYS * (_INT_BYTES + -(-value_bytes // 16) * 16)
        self._buckets: list[dict[int, int]] = [{} for _ in range(int(max_bytes * (1 - _LOG_SHARE)) // bucket_bytes)]
        self._num_buckets = len(self._buckets)
        self._log_budget = int(max_bytes * _LOG_SHARE / _LOG_ENTRY_BYTES)  # entries of all workers, in equal shares
        self._max_workers = max_workers
        self._free = deque(1 << _WORKERS_SHIFT + 2 * position for position in range(num_positions))
        self._workers: dict[str, _Worker] = {}  # all and only those that joined and were not forgotten
        self._leaving: deque[_Worker] = deque()  # all and only those forgotten whose bits are not all cleared
        self._by_held: dict[int, _Worker] = {}  # both of the above, by bit
        self._all_held = 0  # their bits
        self._sorted: list[_Worker] = []  # of _workers, by id
        self._trusted = 0  # bits of the workers that lookups tell of
        self._ratio = float(_RATIO_ONE)  # of pieces whose own is unknown
        self._memos: dict[tuple[int, int], _Pairs] = {}  # see _pairs

    @property
    def num_pieces(self) -> int:
        """Count the pieces that are known."""
        return sum(map(len, self._buckets))

    def believed_tokens(self, worker_id: str) -> int:
        """Return how many tokens a worker is believed to have cached; 0 for an unknown one."""
        worker = self._workers.get(worker_id)
        return 0 if worker is None else int(worker.num_tokens * self._ratio / _RATIO_ONE)

    def join(self, worker_id: str, *, epoch: int, num_kv_blocks: int, block_size: int) -> None:
        """Take a worker in; one known by another epoch has restarted with an empty cache. Idempotent.

        Its cache bounds what is believed of it (0 blocks: it did not say). Nothing is believed of a worker beyond the
        number that the index tells apart.
        """
        known = self._workers.get(worker_id)
        if known is not None and known.epoch == epoch:
            return
        self.forget(worker_id)
        if not self._free and self._leaving:
            self._clear(self._leaving[0], len(self._leaving[0].log))
        if self._free and len(self._workers) < self._max_workers:
            held = self._free.popleft()
            max_tokens = num_kv_blocks * block_size or sys.maxsize
            worker = _Worker(worker_id, epoch, held, held << 1, max_tokens, max(1, block_size))
            self._workers[worker_id] = self._by_held[held] = worker
            self._all_held |= held
            self._trusted |= held
            self._membership_changed()

    def forget(self, worker_id: str) -> None:
        """Believe nothing of a worker any longer."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        self._trusted &= ~worker.held
        self._membership_changed()
        self._leaving.append(worker)
        self._clear(worker, _CLEARED_PER_CALL)

    def lookup(self, pieces: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
        """List (worker id, prompt tokens believed in its cache), by worker id, of the workers with any."""
        buckets, num_buckets = self._buckets, self._num_buckets
        holding = self._trusted if num_buckets else 0
        levels: list[tuple[int, int, int]] = []  # (bits, depth, value of the last piece), of ever fewer workers
        depth = value = 0
        for piece in pieces if holding else ():
            found = buckets[piece % num_buckets].get(piece)
            if found is None:
                break
            if found & holding != holding:
                if depth:
                    levels.append((holding, depth, value))
                holding &= found
                if not holding:
                    break
            depth += 1
            value = found
        if holding and depth:
            levels.append((holding, depth, value))
        return self._deepest(levels) if levels else ()

    def _deepest(self, levels: list[tuple[int, int, int]]) -> tuple[tuple[str, int], ...]:
        """Pair each worker of some levels with what it has by the last level that it is in."""
        pairs, found = self._pairs(levels[0][0], self._tokens(*levels[0][1:]))
        if len(levels) == 1:
            return pairs
        deepest = found.copy()  # whoever has more is among these: their order stays
        for number, (bits, *level) in enumerate(levels[1:], start=2):
            tokens = self._tokens(*level)
            ending = bits & ~levels[number][0] if number < len(levels) else bits
            while ending:
                held = ending & -ending
                worker = self._by_held[held]
                deepest[worker.worker_id] = tokens // worker.block_size * worker.block_size
                ending ^= held
        return tuple(deepest.items())

    def record(self, worker_id: str, pieces: tuple[int, ...]) -> None:
        """Believe that a worker will have these pieces cached, for it was given their prompt."""
        worker = self._workers.get(worker_id)
        if worker is None or not self._num_buckets:
            return
        buckets, num_buckets, held = self._buckets, self._num_buckets, worker.held
        used = held | worker.used | _TOUCHED
        added: list[int] = []
        num_tokens = 0
        for piece, size, tokens in zip(pieces, _SIZES, _TOKENS, strict=False):
            bucket = buckets[piece % num_buckets]
            value = bucket.get(piece)
            if value is None:
                if len(bucket) >= _WAYS:
                    self._evict(bucket)
                bucket[piece] = held | size
            elif value & used == used:
                continue
            else:
                bucket[piece] = value | (used if value & held else held | _TOUCHED)
                if value & held:
                    continue
            added.append(piece)
            num_tokens += tokens
        if added:
            worker.num_tokens += num_tokens
            worker.log.extend(added)
            self._bound(worker, worker.max_tokens * _RATIO_ONE / self._ratio)
        if self._leaving:
            self._clear(self._leaving[0], _CLEARED_PER_CALL)

    def correct(
        self,
        worker_id: str,
        pieces: tuple[int, ...],
        *,
        prompt_tokens: int,
        cached_tokens: int,
        believed_tokens: int,
        num_bytes: int,
    ) -> None:
        """Learn from what a worker reports of a leg that it has computed, and that was recorded when it was decided.

        `believed_tokens` is what `lookup` had said of this worker then, and `num_bytes` the length of the prompt's
        text. A worker that had less has computed it since, so these pieces are true; but a cache drops first what was
        used longest ago, and so as many tokens of the oldest beliefs are forgotten. A worker that lastingly has less
        than half of what it is believed to have is not told of until it reports hits. No prompt tokens: nothing known.
        """
        worker = self._workers.get(worker_id)
        if worker is None or not self._num_buckets or prompt_tokens <= 0:
            return
        if num_bytes:
            self._learn_ratio(pieces, prompt_tokens * BYTES_PER_TOKEN * _RATIO_ONE / num_bytes)
        if believed_tokens or cached_tokens:
            score = min(1.0, cached_tokens / believed_tokens) if believed_tokens else 1.0
            worker.trust += _TRUST_GAIN * (score - worker.trust)
            if (worker.trust >= _LEAST_TRUST) != bool(self._trusted & worker.held):
                self._trusted ^= worker.held
        lost = (believed_tokens - cached_tokens) * _RATIO_ONE / self._ratio
        if lost >= PIECE_SIZES[0][0]:
            self._bound(worker, worker.num_tokens - min(lost, worker.num_tokens / _MOST_LOST))

    def _membership_changed(self) -> None:
        self._sorted = sorted(self._workers.values(), key=lambda worker: worker.worker_id)
        self._memos.clear()

    def _learn_ratio(self, pieces: tuple[int, ...], ratio: float) -> None:
        """Note the length of a prompt's tokens with those of its pieces that lack it: the last ones."""
        ratio = min(max(ratio, 1.0), float(_RATIO_MASK))
        self._ratio += _RATIO_GAIN * (ratio - self._ratio)
        bits = int(ratio) << _RATIO_SHIFT
        for piece in reversed(pieces):
            bucket = self._buckets[piece % self._num_buckets]
            value = bucket.get(piece)
            if value is not None:
                if value >> _RATIO_SHIFT & _RATIO_MASK:
                    return
                bucket[piece] = value | bits

    def _tokens(self, depth: int, value: int) -> int:
        """Return the tokens of a prompt's first pieces, whose last has `value`."""
        return PIECE_ENDS[depth - 1] * (value >> _RATIO_SHIFT & _RATIO_MASK or int(self._ratio)) // _RATIO_ONE

    def _pairs(self, bits: int, tokens: int) -> _Pairs:
        """Pair the workers of some bits with what each has of `tokens`: whole blocks."""
        key = (bits, tokens)
        memo = self._memos.get(key)
        if memo is None:
            workers = [worker for worker in self._sorted if bits & worker.held]
            pairs = tuple([(w.worker_id, tokens // w.block_size * w.block_size) for w in workers])
            if len(self._memos) >= _MAX_MEMOS:
                self._memos.clear()
            memo = self._memos[key] = pairs, dict(pairs)
        return memo

    def _evict(self, bucket: dict[int, int]) -> None:
        """Drop the oldest piece of a bucket that was not used since it was last passed over (a clock)."""
        while True:
            oldest = next(iter(bucket))
            value = bucket.pop(oldest)
            if not value & _TOUCHED:
                break
            bucket[oldest] = value ^ _TOUCHED
        tokens = PIECE_SIZES[value >> _SIZE_SHIFT & _SIZE_MASK][0]
        holders = value & self._all_held
        while holders:
            held = holders & -holders
            self._by_held[held].num_tokens -= tokens
            holders ^= held

    def _bound(self, worker: _Worker, max_tokens: float) -> None:
        """Forget a worker's oldest beliefs that were not used since they were last passed over, down to a bound."""
        log, held, used = worker.log, worker.held, worker.used
        max_log = self._log_budget // len(self._by_held)
        buckets, num_buckets = self._buckets, self._num_buckets
        head, end = worker.head, len(log)
        while head < end and (worker.num_tokens > max_tokens or end - head > max_log):
            piece = log[head]
            head += 1
            bucket = buckets[piece % num_buckets]
            value = bucket.get(piece, 0)
            if not value & held:
                continue
            if value & used:
                bucket[piece] = value ^ used
                log.append(piece)
                end += 1
            else:
                self._drop_bit(worker, bucket, piece, value)
        worker.head = head
        if worker.head > len(log) // 2:
            del log[: worker.head]
            worker.head = 0

    def _drop_bit(self, worker: _Worker, bucket: dict[int, int], piece: int, value: int) -> None:
        value &= ~(worker.held | worker.used)
        worker.num_tokens -= PIECE_SIZES[value >> _SIZE_SHIFT & _SIZE_MASK][0]
        if value & self._all_held:
            bucket[piece] = value
        else:
            del bucket[piece]

    def _clear(self, worker: _Worker, num_entries: int) -> None:
        """Clear the bits of the next pieces of a forgotten worker; when none is left, another may have its position."""
        end = min(worker.head + num_entries, len(worker.log))
        for piece in worker.log[worker.head : end]:
            bucket = self._buckets[piece % self._num_buckets]
            value = bucket.get(piece, 0)
            if value & worker.held:
                self._drop_bit(worker, bucket, piece, value)
        worker.head = end
        if end == len(worker.log):
            self._leaving.remove(worker)
            del self._by_held[worker.held]
            self._all_held ^= worker.held
            self._free.append(worker.held)
