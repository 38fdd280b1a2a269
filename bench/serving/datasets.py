"""What is asked: lengths drawn or read from traces, or texts from files.

Owns the sources of requests and the file formats that hold texts (sim.trace_formats owns those that hold lengths). Must
not know endpoints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from bench.serving.prompt_text import Vocabulary, with_prefix
from core.errors import ConfigError, reason_of
from sim.generators import RECIPES, generate, with_classes
from sim.trace_formats import CHARACTERS_PER_TOKEN
from sim.traces import read_trace
from sim.workload import Floats, Workload

RANDOM, TRACE, SHAREGPT, CUSTOM = "random", "trace", "sharegpt", "custom"
NAMES: Final = (RANDOM, TRACE, SHAREGPT, CUSTOM, *RECIPES)
DEFAULT_OUTPUT_TOKENS: Final = 256  # of texts that name none, as vLLM's custom dataset has it


@dataclass(frozen=True, slots=True)
class Item:
    """One request before it has an endpoint."""

    prompt: str | list[dict[str, object]]  # text, or messages of a chat
    prompt_tokens: int  # counted or estimated
    output_tokens: int
    slo_class: str = ""


class Source(Protocol):
    """A dataset."""

    def __len__(self) -> int:
        """Count the requests."""

    def item(self, index: int) -> Item:
        """Make one; the same for the same index."""

    @property
    def arrived_s(self) -> Floats | None:
        """Times of the requests, from 0; None: the dataset has none."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what was done to it on the way."""


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """Which dataset, as flags and sweep files name it."""

    name: str = RANDOM
    path: Path | None = None
    num_requests: int = 1000
    input_tokens: int = 1024
    output_tokens: int = 128
    range_ratio: float = 0.0  # lengths are drawn from (1 - ratio) to (1 + ratio) of these
    prefix_tokens: int = 0  # that all prompts of `random` begin with
    class_shares: tuple[tuple[str, float], ...] = ()  # of requests whose dataset names no class
    seed: int = 0
    text_seed: int = 0  # other words of the same lengths: what one run asked, no prefix cache of the next may know
    max_total_tokens: int | None = None


class LengthsSource:
    """Prompts made up to the lengths, and the shared beginnings, of a workload."""

    def __init__(
        self, workload: Workload, vocabulary: Vocabulary, class_names: Sequence[str], notes: tuple[str, ...], seed: int
    ) -> None:
        self._workload = workload
        self._vocabulary = vocabulary
        self._classes = class_names
        self._seed = seed
        self.notes = notes

    def __len__(self) -> int:
        """Count the requests."""
        return len(self._workload)

    @property
    def arrived_s(self) -> Floats | None:
        """Times of the workload."""
        return self._workload.arrived_s

    def item(self, index: int) -> Item:
        """Make the prompt; no two begin alike but where the workload says so."""
        load = self._workload
        tokens = int(load.prompt_tokens[index])
        key = self._seed * 1_000_003 + index
        if len(load.prefix_start):
            begin, end = load.prefix_start[index], load.prefix_start[index + 1]
            blocks = [self._seed * 1_000_003 + int(i) for i in load.prefix_ids[begin:end]]
            text = with_prefix(self._vocabulary, blocks, load.prefix_block_tokens, key, tokens)
        else:
            text = self._vocabulary.text(key, self._vocabulary.num_words(tokens))
        name = self._classes[int(load.slo_class[index])] if len(load.slo_class) else ""
        return Item(text, tokens, int(load.output_tokens[index]), name)


@dataclass(frozen=True, slots=True)
class TextSource:
    """Texts of one's own."""

    items: tuple[Item, ...]
    arrived_s: Floats | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the requests."""
        return len(self.items)

    def item(self, index: int) -> Item:
        """Give one."""
        return self.items[index]


def make_source(spec: DatasetSpec, vocabulary: Vocabulary) -> Source:
    """Open a dataset. Raises ConfigError that names what is missing or wrong."""
    if spec.name not in NAMES:
        raise ConfigError(f"there is no dataset {spec.name!r}; choose one of {', '.join(NAMES)}")
    if spec.name in (TRACE, SHAREGPT, CUSTOM) and spec.path is None:
        raise ConfigError(f"the dataset {spec.name} is a file; name it by --dataset-path")
    if spec.name in (SHAREGPT, CUSTOM):
        assert spec.path is not None
        return _texts(spec, spec.path)
    names = [name for name, _ in spec.class_shares]
    workload, notes = _workload(spec, names)
    if spec.class_shares and not len(workload.slo_class):
        total = sum(share for _, share in spec.class_shares)
        workload = with_classes(workload, [share / total for _, share in spec.class_shares], seed=spec.seed)
    return LengthsSource(workload, vocabulary, names, notes, spec.seed + 31 * spec.text_seed)


def _workload(spec: DatasetSpec, names: Sequence[str]) -> tuple[Workload, tuple[str, ...]]:
    if spec.name == TRACE:
        assert spec.path is not None
        trace = read_trace(
            spec.path,
            max_requests=spec.num_requests,
            max_total_tokens=spec.max_total_tokens,
            class_names=names,
            seed=spec.seed,
        )
        return trace.workload, trace.notes
    if spec.name == RANDOM:
        return _random(spec), ()
    made = generate(
        spec.name, num_requests=spec.num_requests, rate=1.0, seed=spec.seed, max_total_tokens=spec.max_total_tokens
    )
    return made, ()


def _random(spec: DatasetSpec) -> Workload:
    """Draw lengths as `vllm bench serve --dataset-name random` does; the shared prefix comes on top."""
    if not 0 <= spec.range_ratio < 1:
        raise ConfigError(f"--random-range-ratio is {spec.range_ratio:g}; it must be from 0 to below 1")
    rng = np.random.default_rng([spec.seed, 0x4A2D])

    def lengths(mean: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        low, high = int(mean * (1 - spec.range_ratio)), int(np.ceil(mean * (1 + spec.range_ratio)))
        return rng.integers(max(1, low), max(1, high) + 1, spec.num_requests)

    count, prefix = spec.num_requests, spec.prefix_tokens
    workload = Workload(
        RANDOM, np.arange(count, dtype=float), lengths(spec.input_tokens) + prefix, lengths(spec.output_tokens)
    )
    if prefix:
        ids = np.zeros(count, np.int64)
        workload = replace(workload, prefix_start=np.arange(count + 1), prefix_ids=ids, prefix_block_tokens=prefix)
    return workload


def _texts(spec: DatasetSpec, path: Path) -> TextSource:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {reason_of(exc)}") from exc
    rows = _rows(text, path)
    read = _conversation if spec.name == SHAREGPT else _own_text
    found = [item for number, row in rows if (item := read(row, f"{path}:{number}", spec)) is not None]
    if not found:
        raise ConfigError(f"{path}: holds no request that fits")
    kept = tuple(found[: spec.num_requests])
    left_out = f"{len(rows) - len(found):,} of {len(rows):,} entries were left out (too short or too long)"
    return TextSource(kept, _own_times(rows, path, len(kept)), (left_out,) if len(found) < len(rows) else ())


def _rows(text: str, path: Path) -> list[tuple[int, dict[str, object]]]:
    """Read a list of objects, or one object on each line; with the number of each."""
    try:
        if text.lstrip().startswith("["):
            rows = list(enumerate(json.loads(text), 1))
        else:
            rows = [(n, json.loads(line)) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    except ValueError as exc:
        raise ConfigError(f"{path}: is no JSON list and no JSONL: {exc}") from exc
    for number, row in rows:
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number}: is no JSON object")
    return rows


def _conversation(row: dict[str, object], where: str, spec: DatasetSpec) -> Item | None:
    """Take the first question of a ShareGPT conversation, and an answer of the length it had."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    question, answer = (str(turn.get("value", "")) for turn in turns[:2])
    item = Item(question, _estimated(question), _estimated(answer))
    # The bounds of vllm/benchmarks/datasets.py: is_valid_sequence.
    fits = item.prompt_tokens >= 4 and item.output_tokens >= 4 and _fits(item, spec)
    return item if fits else None


def _own_text(row: dict[str, object], where: str, spec: DatasetSpec) -> Item | None:
    prompt = row.get("prompt", row.get("messages"))
    if not isinstance(prompt, (str, list)) or not prompt:
        raise ConfigError(f"{where}: has neither prompt, a text, nor messages, a list")
    output = row.get("output_tokens", DEFAULT_OUTPUT_TOKENS)
    if isinstance(output, bool) or not isinstance(output, int) or output < 1:
        raise ConfigError(f"{where}: output_tokens is {output!r}; write a whole number of at least 1")
    given = row.get("prompt_tokens")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    tokens = given if isinstance(given, int) else _estimated(text)
    name = str(row.get("slo_class", ""))
    if not (name.isascii() and name.isprintable()):
        raise ConfigError(f"{where}: slo_class is {name[:40]!r}; write a name of plain letters")
    item = Item(prompt, tokens, output, name)
    return item if _fits(item, spec) else None


def _own_times(rows: Sequence[tuple[int, dict[str, object]]], path: Path, count: int) -> Floats | None:
    times = [row.get("arrived_s") for _, row in rows[:count]]
    if any(not isinstance(time, (int, float)) for time in times):
        return None
    arrived_s: Floats = np.array(times, float)
    if (np.diff(arrived_s) < 0).any():
        raise ConfigError(f"{path}: arrived_s falls from one line to the next; sort the lines by it")
    from_zero: Floats = arrived_s - arrived_s[0]
    return from_zero


def _fits(item: Item, spec: DatasetSpec) -> bool:
    return spec.max_total_tokens is None or item.prompt_tokens + item.output_tokens <= spec.max_total_tokens


def _estimated(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))
