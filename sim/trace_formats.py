"""The formats of traces: text to columns, told apart by content, never by the file's name.

Owns what each format calls its fields and which units it uses. Must not judge values (sim.traces does) or open files.

* CSV with a header: `arrived_s,prompt_tokens,output_tokens[,slo_class]`, the public Azure traces'
  `TIMESTAMP,ContextTokens,GeneratedTokens`, or lengths alone;
* JSONL of the Mooncake traces: `timestamp` in ms, `input_length`, `output_length`, `hash_ids` of 512-token blocks; and
  recordings of a router (core.recording), which have these fields too, and hashes of shorter blocks;
* JSON of `vllm bench serve --save-result --save-detailed`;
* JSONL of vLLM's custom dataset: `prompt`, `output_tokens`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from core.errors import ConfigError
from core.recording import BLOCK_TOKENS, SETTING

MOONCAKE_BLOCK_TOKENS = 512  # FAST25-release/traces of kvcache-ai/Mooncake
CHARACTERS_PER_TOKEN = 4.0  # rule of thumb for English text; only for prompts whose token count is not given
_ARRIVED = ("arrived_s", "TIMESTAMP")
_PROMPT = ("prompt_tokens", "ContextTokens")
_OUTPUT = ("output_tokens", "GeneratedTokens")
_REMEDY = (
    "a trace is CSV with the columns [arrived_s,]prompt_tokens,output_tokens (or Azure's "
    "TIMESTAMP,ContextTokens,GeneratedTokens), Mooncake JSONL, a result of `vllm bench serve --save-detailed`, or "
    "JSONL with prompt and output_tokens"
)


@dataclass(frozen=True, slots=True)
class Columns:
    """What a file says of each request, unchecked but numeric; all sequences have one entry for each request."""

    format: str  # for people
    lines: Sequence[int]  # where each request stands in the file, or its number in a list
    prompt_tokens: Sequence[float]
    output_tokens: Sequence[float]
    arrived_s: Sequence[float] | None  # None: the file has lengths only
    slo_class: Sequence[str] | None = None
    prefix_ids: Sequence[Sequence[int]] | None = None
    prefix_block_tokens: int = MOONCAKE_BLOCK_TOKENS
    notes: tuple[str, ...] = ()


def parse(text: str, *, file: str) -> Columns:
    """Tell the format of `text` and read it; `file` is for messages. Raises ConfigError with file and line."""
    if not text.strip():
        raise ConfigError(f"{file}: is empty; {_REMEDY}")
    if text.lstrip()[0] not in "{[":
        return _parse_csv(text, file)
    documents = _json_documents(text, file)
    recorded = [(line, document) for line, document in documents if document.get("event") != SETTING]
    if recorded and len(recorded) < len(documents):
        return _parse_mooncake(recorded, file, form="recorded traffic", block_tokens=BLOCK_TOKENS)
    first = documents[0][1]
    if "input_length" in first:
        return _parse_mooncake(documents, file)
    if "prompt" in first:
        return _parse_custom(documents, file)
    if "input_lens" in first or "request_throughput" in first:
        return _parse_vllm_result(documents, file)
    raise ConfigError(f"{file}:{documents[0][0]}: this JSON is no trace that is known here; {_REMEDY}")


def _parse_csv(text: str, file: str) -> Columns:
    reader = csv.reader(text.splitlines())
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    names = [name.strip() for name in rows[0][1]]
    arrived, prompt, output = (_column(names, known) for known in (_ARRIVED, _PROMPT, _OUTPUT))
    if prompt is None or output is None:
        raise ConfigError(f"{file}:{rows[0][0]}: the header {','.join(names)[:80]!r} names no known columns; {_REMEDY}")
    rows = rows[1:]
    lines = [line for line, _ in rows]
    for line, row in rows:
        if len(row) != len(names):
            raise ConfigError(f"{file}:{line}: has {len(row)} values where the header names {len(names)}")
    label = _column(names, ("slo_class",))
    return Columns(
        format="CSV",
        lines=lines,
        prompt_tokens=_numbers([row[prompt] for _, row in rows], lines, names[prompt], file),
        output_tokens=_numbers([row[output] for _, row in rows], lines, names[output], file),
        arrived_s=None if arrived is None else _times([row[arrived] for _, row in rows], lines, names[arrived], file),
        slo_class=None if label is None else [row[label].strip() for _, row in rows],
    )


def _column(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _numbers(cells: Sequence[str], lines: Sequence[int], name: str, file: str) -> list[float]:
    numbers = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            numbers.append(float(cell))
        except ValueError:
            raise ConfigError(f"{file}:{line}: {name} is {cell[:40]!r}; write a number") from None
    return numbers


def _times(cells: Sequence[str], lines: Sequence[int], name: str, file: str) -> list[float]:
    """Read seconds, or dates and times as in the Azure traces, which count as UTC where they name no zone."""
    try:
        float(cells[0]) if cells else 0.0
    except ValueError:
        pass
    else:
        return _numbers(cells, lines, name, file)
    times_s = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            moment = datetime.fromisoformat(cell.strip())
        except ValueError:
            message = f"{name} is {cell[:40]!r}; write seconds, or a date and time like the first row's"
            raise ConfigError(f"{file}:{line}: {message}") from None
        times_s.append((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    return times_s


_Object = dict[str, object]


def _json_documents(text: str, file: str) -> list[tuple[int, _Object]]:
    """Read one JSON object over many lines, or one on each line; with the line where each begins."""
    try:
        whole = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deeply; {_REMEDY}") from None
    except ValueError:
        documents = [(n, _json_line(line, n, file)) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        documents = [(1, whole)]
    for line, document in documents:
        if not isinstance(document, dict):
            raise ConfigError(f"{file}:{line}: is no JSON object; {_REMEDY}")
    return documents


def _json_line(line: str, number: int, file: str) -> _Object:
    try:
        value: _Object = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{file}:{number}: is no JSON: {exc}; {_REMEDY}") from None
    return value


def _field(document: _Object, name: str, line: int, file: str) -> float:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        shown = "missing" if name not in document else f"{str(value)[:40]!r}"
        raise ConfigError(f"{file}:{line}: {name} is {shown}; write a number")
    return _float(value)


def _float(value: float) -> float:
    """Take whole numbers of hundreds of digits for infinity, which is then refused as a value."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _parse_mooncake(
    documents: Sequence[tuple[int, _Object]],
    file: str,
    *,
    form: str = "Mooncake JSONL",
    block_tokens: int = MOONCAKE_BLOCK_TOKENS,
) -> Columns:
    prefix_ids = []
    for line, document in documents:
        ids = document.get("hash_ids", [])
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise ConfigError(f"{file}:{line}: hash_ids is no list of whole numbers")
        prefix_ids.append(ids)
    timed = "timestamp" in documents[0][1]
    labelled = "slo_class" in documents[0][1]
    return Columns(
        format=form,
        lines=[line for line, _ in documents],
        prompt_tokens=[_field(d, "input_length", line, file) for line, d in documents],
        output_tokens=[_field(d, "output_length", line, file) for line, d in documents],
        arrived_s=[_field(d, "timestamp", line, file) / 1000.0 for line, d in documents] if timed else None,
        slo_class=[str(d.get("slo_class", "")) for _, d in documents] if labelled else None,
        prefix_ids=prefix_ids if any(prefix_ids) else None,
        prefix_block_tokens=block_tokens,
    )


def _parse_custom(documents: Sequence[tuple[int, _Object]], file: str) -> Columns:
    prompts: list[float] = []
    estimated = 0
    for line, document in documents:
        if "prompt_tokens" in document:
            prompts.append(_field(document, "prompt_tokens", line, file))
            continue
        prompt = document.get("prompt")
        if not isinstance(prompt, str):
            raise ConfigError(f"{file}:{line}: prompt is no text; write the prompt, or prompt_tokens with its length")
        prompts.append(float(math.ceil(len(prompt) / CHARACTERS_PER_TOKEN)))
        estimated += 1
    note = (
        f"{estimated} prompts have text but no prompt_tokens: their lengths are estimated at "
        f"{CHARACTERS_PER_TOKEN:g} characters a token"
    )
    return Columns(
        format="vLLM custom dataset",
        lines=[line for line, _ in documents],
        prompt_tokens=prompts,
        output_tokens=[_field(d, "output_tokens", line, file) for line, d in documents],
        arrived_s=None,
        notes=(note,) if estimated else (),
    )


def _parse_vllm_result(documents: Sequence[tuple[int, _Object]], file: str) -> Columns:
    if len(documents) > 1:
        raise ConfigError(f"{file}: holds {len(documents)} benchmark results; keep the one to plan for")
    line, document = documents[0]
    if "input_lens" not in document or "output_lens" not in document:
        message = "this result has no single requests; run `vllm bench serve` with --save-result --save-detailed"
        raise ConfigError(f"{file}: {message}")
    lists = {name: _number_list(document, name, line, file) for name in ("input_lens", "output_lens")}
    if document.get("start_times"):
        lists["start_times"] = _number_list(document, "start_times", line, file)
    if len({len(values) for values in lists.values()}) != 1:
        sizes = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        raise ConfigError(f"{file}: the lists differ in length ({sizes}); the file is damaged")
    outputs = lists["output_lens"]
    # A request that failed has no output; it says nothing of how long its answer would have been.
    kept = [i for i, output in enumerate(outputs) if output > 0]
    failed = len(outputs) - len(kept)
    times = lists.get("start_times")
    return Columns(
        format="vllm bench serve",
        lines=[i + 1 for i in kept],
        prompt_tokens=[lists["input_lens"][i] for i in kept],
        output_tokens=[outputs[i] for i in kept],
        arrived_s=None if times is None else [times[i] for i in kept],
        notes=(f"{failed} requests that failed in the benchmark were left out",) if failed else (),
    )


def _number_list(document: _Object, name: str, line: int, file: str) -> list[float]:
    values = document[name]
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) for v in values):
        raise ConfigError(f"{file}:{line}: {name} is no list of numbers; the file is damaged")
    return [_float(v) for v in values]
