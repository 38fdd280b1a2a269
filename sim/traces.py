"""Traces: files of real requests, brought to one form.

Owns the checks of values and what is left out, each with a note. The formats themselves are sim.trace_formats. Must not
know the planner.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from core.errors import ConfigError
from sim.trace_formats import Columns, parse
from sim.workload import Floats, Ints, Workload, without_gaps

_MAX_TOKENS = 100_000_000  # of one prompt or output; more is no length but a wrong column
_MAX_BYTES = 1 << 29  # of text; the largest public trace has 50 MB
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Trace:
    """A workload read from a file, and what was done to it on the way."""

    workload: Workload  # without arrival times in the file: Poisson arrivals, one per second
    has_arrivals: bool
    has_classes: bool
    notes: tuple[str, ...]


def read_trace(
    path: Path,
    *,
    max_requests: int | None = None,
    max_total_tokens: int | None = None,
    class_names: Sequence[str] = (),
    default_class: int = 0,
    seed: int = 0,
) -> Trace:
    """Read the first `max_requests` requests of a trace, plain or gzipped.

    Requests of more than `max_total_tokens`, prompt and output together, are left out and counted in the notes. Where
    the file names a class, it must be one of `class_names`; a request that names none is of `default_class`. `seed` is
    for the arrivals of files that have none. Raises ConfigError that names file, line and remedy.
    """
    file = str(path)
    columns = parse(_read_text(path), file=file)
    notes = list(columns.notes)
    if max_requests is not None and len(columns.lines) > max_requests:
        notes.append(f"the first {max_requests:,} of {len(columns.lines):,} requests are used")
    prompt_tokens = _lengths(columns.prompt_tokens[:max_requests], columns.lines, "the prompt's length", file)
    output_tokens = _lengths(columns.output_tokens[:max_requests], columns.lines, "the output's length", file)
    if not len(prompt_tokens):
        raise ConfigError(f"{file}: holds no request")
    arrived_s = _arrivals(columns, len(prompt_tokens), file, seed=seed)
    order = np.argsort(arrived_s, kind="stable")
    displaced = int((np.diff(arrived_s) < 0).sum())
    if displaced:
        notes.append(f"{displaced:,} requests stood after later ones; all are sorted by arrival")
    workload = Workload(
        name=path.name,
        arrived_s=arrived_s[order] - arrived_s[order[0]],
        prompt_tokens=prompt_tokens[order],
        output_tokens=output_tokens[order],
        slo_class=_classes(columns, class_names, default_class, file)[:max_requests][order]
        if columns.slo_class is not None
        else np.zeros(0, np.int64),
    )
    workload = _with_prefixes(workload, columns, order)
    if columns.arrived_s is None:
        notes.append("the file has no arrival times: Poisson arrivals are assumed")
    if max_total_tokens is not None:
        workload = _fitting(workload, max_total_tokens, notes, file)
    return Trace(workload, columns.arrived_s is not None, columns.slo_class is not None, tuple(notes))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = _read_all(file, path)
        if data.startswith(_GZIP_MAGIC):
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = _read_all(packed, path)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such trace file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name one trace file in it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise ConfigError(f"{path}: the gzip file is damaged ({exc}); fetch it again") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is no text ({exc.reason} at byte {exc.start})") from None
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from None


def _read_all(file: IO[bytes] | gzip.GzipFile, path: Path) -> bytes:
    data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: has more than {_MAX_BYTES >> 20} MiB of text; a part of it is trace enough")
    return data


def _lengths(values: Sequence[float], lines: Sequence[int], what: str, file: str) -> Ints:
    lengths = np.asarray(values, np.float64)
    wrong = ~((lengths >= 1) & (lengths <= _MAX_TOKENS) & (lengths == np.floor(lengths)))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ConfigError(
            f"{file}:{lines[first]}: {what} is {lengths[first]:g}; it must be a whole number of tokens from 1 to "
            f"{_MAX_TOKENS:,} ({_count(int(wrong.sum()), 'such request')}); correct or remove {_these(wrong)}"
        )
    return lengths.astype(np.int64)


def _arrivals(columns: Columns, size: int, file: str, *, seed: int) -> Floats:
    if columns.arrived_s is None:
        gaps_s: Floats = np.random.default_rng(seed).exponential(1.0, size)
        return np.cumsum(gaps_s)
    arrived_s = np.asarray(columns.arrived_s[:size], np.float64)
    wrong = ~(np.isfinite(arrived_s) & (arrived_s >= 0))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ConfigError(
            f"{file}:{columns.lines[first]}: the arrival time is {arrived_s[first]:g}; it must be zero or more seconds "
            f"({_count(int(wrong.sum()), 'such request')}); correct or remove {_these(wrong)}"
        )
    if size > 1 and arrived_s.min() == arrived_s.max():
        raise ConfigError(
            f"{file}: all {size:,} requests arrive at the same time, so they have no rate; remove the column of "
            "arrival times to have Poisson arrivals"
        )
    return arrived_s


def _classes(columns: Columns, names: Sequence[str], default: int, file: str) -> Ints:
    index = {name: i for i, name in enumerate(names)} | {"": default}
    for line, name in zip(columns.lines, columns.slo_class or (), strict=True):
        if name not in index:
            raise ConfigError(f"{file}:{line}: slo_class {name!r} is none of {', '.join(names) or 'the promise'}")
    return np.array([index[name] for name in columns.slo_class or ()], np.int64)


def _with_prefixes(workload: Workload, columns: Columns, order: Ints) -> Workload:
    """Put the prefix ids beside the requests; ids beyond the whole blocks of a prompt share nothing and are cut."""
    if columns.prefix_ids is None:
        return workload
    block = columns.prefix_block_tokens
    most = workload.prompt_tokens // block
    kept = [columns.prefix_ids[i][:limit] for i, limit in zip(order.tolist(), most.tolist(), strict=True)]
    prefix_start = np.concatenate(([0], np.cumsum([len(ids) for ids in kept]))).astype(np.int64)
    number_of: dict[int, int] = {}  # ids may be hashes of any size; only which are equal counts
    ids = np.array([number_of.setdefault(i, len(number_of)) for some in kept for i in some], np.int64)
    return replace(workload, prefix_start=prefix_start, prefix_ids=without_gaps(ids), prefix_block_tokens=block)


def _fitting(workload: Workload, max_total_tokens: int, notes: list[str], file: str) -> Workload:
    fitting = workload.fitting(max_total_tokens)
    dropped = len(workload) - len(fitting)
    if not len(fitting):
        raise ConfigError(
            f"{file}: no request fits the model's {max_total_tokens:,} tokens (prompt and output together); plan for a "
            "model with a longer context, or raise model.max_model_len"
        )
    if dropped:
        share = 100.0 * dropped / len(workload)
        notes.append(
            f"{dropped:,} of {len(workload):,} requests ({share:.2g} %) exceed the model's {max_total_tokens:,} tokens "
            "and were left out; the plan says nothing of them"
        )
    return fitting


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _these(wrong: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str:
    return "it" if int(wrong.sum()) == 1 else "them"
