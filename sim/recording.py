"""Recordings of live traffic, read back: what arrived, what became of it, and how it was served.

Owns the reading of the files, what is left out, and the cut to a window. Their form is core.recording's. Must not
simulate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from core.errors import ConfigError
from core.recording import BLOCK_TOKENS, SETTING, Recorded, RecordedWorker, Setting, request_of, setting_of
from sim.cluster import Outage
from sim.workload import Workload, without_gaps

_ADVICE: Final = "name a file that router.record wrote"


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What a router served from `from_s` to `until_s`, since the epoch."""

    from_s: float
    until_s: float
    requests: tuple[Recorded, ...]  # by arrival, not empty
    settings: tuple[Setting, ...]  # by time, not empty: the one in force at `from_s` first

    @property
    def setting(self) -> Setting:
        """The setting in force at the end."""
        return self.settings[-1]

    def last(self, seconds: float) -> Recording:
        """Cut to what arrived in the last `seconds`. Raises ConfigError when that is nothing."""
        from_s = max(self.from_s, self.until_s - seconds)
        requests = tuple(r for r in self.requests if r.arrived_s >= from_s)
        if not requests:
            raise ConfigError(f"--last: nothing arrived in the last {seconds:g} s of the recording; take more of it")
        begun = [s for s in self.settings if s.at_s <= from_s]
        later = [s for s in self.settings if s.at_s > from_s]
        return Recording(from_s, self.until_s, requests, (*begun[-1:], *later))

    def workers(self) -> tuple[RecordedWorker, ...]:
        """List every worker that was there at some time, by id."""
        found = {worker.worker_id: worker for setting in self.settings for worker in setting.workers}
        return tuple(found[worker_id] for worker_id in sorted(found))

    def absences(self, worker_id: str, *, place: int) -> Iterator[Outage]:
        """Yield when a worker was not there, in seconds from `from_s`, as outages of the worker at `place`."""
        gone_s: float | None = None
        for number, setting in enumerate(self.settings):
            at_s = 0.0 if number == 0 else max(0.0, setting.at_s - self.from_s)
            is_there = any(worker.worker_id == worker_id for worker in setting.workers)
            if is_there and gone_s is not None and at_s > gone_s:
                yield Outage(place, gone_s, at_s)
            if is_there:
                gone_s = None
            elif gone_s is None:
                gone_s = at_s
        if gone_s is not None:
            yield Outage(place, gone_s, 2 * (self.until_s - self.from_s) + 3600.0)

    def workload(self, classes: tuple[str, ...]) -> Workload:
        """Take the requests as arrivals; each is of one of `classes`."""
        place_of = {name: i for i, name in enumerate(classes)}
        ids, starts = self._prefixes()
        return Workload(
            name="the recorded traffic",
            arrived_s=np.array([r.arrived_s - self.from_s for r in self.requests], np.float64),
            prompt_tokens=np.array([r.prompt_tokens for r in self.requests], np.int64),
            output_tokens=np.array([r.output_tokens for r in self.requests], np.int64),
            slo_class=np.array([place_of[r.slo_class] for r in self.requests], np.int64),
            prefix_start=starts,
            prefix_ids=ids,
            prefix_block_tokens=BLOCK_TOKENS,
        )

    def _prefixes(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Number the hashes; those beyond the whole blocks of a prompt share nothing."""
        kept = [r.hashes[: r.prompt_tokens // BLOCK_TOKENS] for r in self.requests]
        none = np.zeros(0, np.int64)
        if not any(kept):
            return none, none
        starts = np.concatenate(([0], np.cumsum([len(hashes) for hashes in kept]))).astype(np.int64)
        return without_gaps(np.array([h for hashes in kept for h in hashes], np.int64)), starts


def read_recording(path: Path) -> Recording:
    """Read a recording, with the file before it if that is there too.

    A last line without its end, as a killed router leaves it, is not read. Raises ConfigError that names file and line.
    """
    before = path.with_name(path.name + ".1")
    requests: list[Recorded] = []
    settings: list[Setting] = []
    for file in (before, path):
        if file is before and not file.is_file():
            continue
        for found in _lines(file):
            if isinstance(found, Setting):
                settings.append(found)
            else:
                requests.append(found)
    if not requests or not settings:
        raise ConfigError(f"{path}: holds no request yet; serve some, or {_ADVICE}")
    requests.sort(key=lambda request: request.arrived_s)
    until_s = max(r.arrived_s + r.e2e_s for r in requests)
    return Recording(requests[0].arrived_s, until_s, tuple(requests), tuple(settings))


def _lines(path: Path) -> Iterator[Recorded | Setting]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                yield _line(path, number, line)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such recording; {_ADVICE}") from None
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc


def _line(path: Path, number: int, line: bytes) -> Recorded | Setting:
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        return setting_of(fields) if fields.get("event") == SETTING else request_of(fields)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}:{number}: {exc}; {_ADVICE}") from exc
