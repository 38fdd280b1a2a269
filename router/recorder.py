"""The recording of live traffic: one line for each request that ended, in a file of bounded size.

Owns the file, what is left out when the disk is slow, and the secret that hashes are keyed with, which is never
written. What is written is core.recording's business: lengths, times and hashes, no text. Must not influence requests.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Final

import orjson
import xxhash

from core.errors import ConfigError
from core.policy.context import PolicyContext
from core.policy.prefix_index import PIECE_ENDS
from core.recording import (
    BLOCK_TOKENS,
    MAX_BLOCKS,
    Recorded,
    RecordedWorker,
    Setting,
    request_fields,
    setting_fields,
)
from core.types import ClusterView
from router.event_log import begin_file, write_all
from router.life import Life
from router.record import RequestRecord

WRITE_INTERVAL_S: Final = 1.0
MAX_WAITING_BYTES: Final = 4 << 20
_FIRST_OUTPUT_TOKENS: Final = 128.0  # as core.policy.context.PolicyContext has it
_OUTPUT_GAIN: Final = 1 / 32
_HASH_MASK: Final = (1 << 48) - 1  # short numbers that every JSON reader holds exactly


def _places() -> tuple[int, ...]:
    """Find the piece of a prompt that each block of the recording lies in: of a long piece it shares what that does."""
    ends = [block * BLOCK_TOKENS for block in range(1, MAX_BLOCKS + 1)]
    return tuple(bisect_left(PIECE_ENDS, end) for end in ends)


_PLACES: Final = _places()
_PIECE_BYTES: Final = 8

log = logging.getLogger(__name__)


class TrafficRecorder:
    """Takes notes in memory and writes them from a thread; `keep_writing` runs until it is cancelled."""

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        *,
        policy: str,
        context: Callable[[], PolicyContext],
        view: Callable[[], ClusterView],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin a file; one that is there becomes the file before it, and both together take `max_bytes`.

        `clock` is that of requests' marks. Raises ConfigError when the file cannot be written.
        """
        self._path = path
        self._max_file_bytes = max_bytes // 2
        self._policy, self._context, self._view = policy, context, view
        self._clock, self._wall = clock, wall
        self._key = secrets.randbits(64)
        self._means: dict[str, float] = {}  # output tokens of each class, for requests that were not answered
        self._waiting: list[bytes | None] = []  # lines in order; None: here a new file begins
        self._waiting_bytes = self._file_bytes = 0
        self._told: tuple[PolicyContext, tuple[RecordedWorker, ...]] | None = None  # in this file
        self._skipped = 0
        self._is_broken = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="recorder")  # one: lines stay in order
        try:
            self._file: FileIO = begin_file(path)
        except OSError as exc:
            remedy = "name a file in a folder that exists, or null"
            raise ConfigError(f"router.record: {path} cannot be written ({exc.strerror}); {remedy}") from exc

    def ended(self, record: RequestRecord, life: Life) -> None:
        """Note a request whose record is complete."""
        if self._is_broken or (record.shape is None and record.outcome == "client_error"):
            return  # what no worker would have served is no traffic
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._skipped += 1
            return
        if self._file_bytes > self._max_file_bytes:
            self._waiting.append(None)
            self._file_bytes, self._told = 0, None
        if self._told is None:
            self._tell_setting()
        self._add(orjson.dumps(request_fields(self._recorded(record, life)), option=orjson.OPT_APPEND_NEWLINE))

    async def keep_writing(self) -> None:
        """Write what has been noted, every WRITE_INTERVAL_S."""
        while True:
            await asyncio.sleep(WRITE_INTERVAL_S)
            await self.write()

    async def write(self) -> None:
        """Write what has been noted so far, and how requests are served if that has changed; an error ends it."""
        if self._told is not None:
            self._tell_setting()
        if not self._waiting:
            return
        lines, self._waiting, num_bytes = self._waiting, [], self._waiting_bytes
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, lines)
        self._waiting_bytes -= num_bytes
        if self._skipped:
            log.warning("the recording cannot keep up: %d requests are not in it", self._skipped)
            self._skipped = 0

    async def close(self) -> None:
        """Write the rest and close the file; call it when `keep_writing` has ended."""
        await self.write()
        await asyncio.get_running_loop().run_in_executor(self._writer, self._file.close)
        self._writer.shutdown()

    def _recorded(self, record: RequestRecord, life: Life) -> Recorded:
        facts = record.answering_facts or record.prefill_facts
        estimated = 1 if record.shape is None else record.shape.prompt_tokens
        counted = facts.prompt_tokens if facts is not None else 0
        output_tokens, is_guessed = record.output_tokens, False
        name = record.slo.name
        mean = self._means.get(name, _FIRST_OUTPUT_TOKENS)
        if record.outcome == "ok" and output_tokens:
            self._means[name] = mean + _OUTPUT_GAIN * (output_tokens - mean)
        elif not output_tokens:
            is_guessed = True
            output_tokens = max(1, round(mean))
            if life.facts.max_tokens is not None:
                output_tokens = min(output_tokens, life.facts.max_tokens)
        return Recorded(
            self._wall() - (self._clock() - record.marks.arrived_s),
            max(1, counted or estimated),
            output_tokens,
            name,
            record.outcome,
            record.kept,
            record.ttft_s,
            record.tpot_s,
            record.e2e_s,
            record.prefill,
            record.decode,
            is_guessed,
            self._hashes(life.facts.prompt.pieces),
        )

    def _hashes(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        """Key the hashes of a prompt's beginnings: without the key nobody can find out whose beginning they are of."""
        size, key, digest = len(pieces), self._key, xxhash.xxh3_64_intdigest
        hashes = []
        for block, at in enumerate(_PLACES):
            if at >= size:
                break
            hashes.append(digest(pieces[at].to_bytes(_PIECE_BYTES, "little"), key ^ block) & _HASH_MASK)
        return tuple(hashes)

    def _tell_setting(self) -> None:
        """Note how requests are served, if that is not what the file says already."""
        context, workers = self._context(), _workers(self._view())
        told = self._told
        if told is not None and told[0] is context and told[1] == workers:
            return
        self._told = context, workers
        setting = Setting(self._wall(), self._policy, context, workers)
        self._add(orjson.dumps(setting_fields(setting), option=orjson.OPT_APPEND_NEWLINE))

    def _add(self, line: bytes) -> None:
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._file_bytes += len(line)

    def _write(self, lines: list[bytes | None]) -> None:
        if self._is_broken:
            return
        try:
            self._write_in_batches(lines)
        except OSError as exc:
            self._is_broken = True
            log.error("the recording %s ends here: %s", self._path, exc.strerror)

    def _write_in_batches(self, lines: list[bytes | None]) -> None:
        begin = 0
        while None in lines[begin:]:
            end = lines.index(None, begin)
            self._write_lines(lines[begin:end])
            self._file.close()
            self._file = begin_file(self._path)
            begin = end + 1
        self._write_lines(lines[begin:])

    def _write_lines(self, lines: list[bytes | None]) -> None:
        write_all(self._file, b"".join([line for line in lines if line is not None]))


def _workers(view: ClusterView) -> tuple[RecordedWorker, ...]:
    return tuple(
        RecordedWorker(
            w.record.worker_id,
            w.record.role,
            w.hello.num_kv_blocks,
            w.hello.fingerprint.block_size,
            w.hello.fingerprint.tensor_parallel * w.hello.fingerprint.pipeline_parallel,
        )
        for w in view.workers
    )
