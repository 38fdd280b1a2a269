"""An explanation in lines, for people: what `baton explain` prints.

Owns wording and layout. Must not know how an explanation is made or fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import TypeAdapter

from router.explanation import CacheUse, Candidate, Explanation, Predicted, TimelineTold

_BAR: Final = 40  # columns
_EXPLANATION: Final = TypeAdapter(Explanation)


def explanation_of(answer: bytes) -> Explanation:
    """Read what GET /v1/requests/{id}/explain answered. Raises ValueError for anything else."""
    return _EXPLANATION.validate_json(answer)


def explanation_lines(told: Explanation) -> list[str]:
    """Write pair and reason, predicted against actual, the candidates, the time line and the caches."""
    targets = f"TTFT {told.ttft_target_ms:g} ms, TPOT {told.tpot_target_ms:g} ms"
    lines = [f"{told.request_id} {told.path}: {told.verdict}", f"  class    {told.slo_class}: {targets}"]
    lines += _choice_lines(told)
    for held in told.holds:
        lines.append(f"  held     after {held.at_ms:g} ms, until {held.until_ms:g} ms at the latest: {held.reason}")
    if told.num_holds > len(told.holds):
        lines.append(f"           and {told.num_holds - len(told.holds)} times more")
    lines += [f"  failed   {_pair(t.prefill, t.decode)}: {t.error}" for t in told.failed_tries]
    lines += [f"  resumed  at {r.decode} after a gap of {r.gap_ms:.0f} ms, {r.at_ms:.0f} ms in" for r in told.resumes]
    lines += ["", *_outcome_lines(told)]
    if told.candidates:
        lines += ["", "candidates, as expected at the decision:", *_candidate_lines(told.candidates)]
    lines += ["", *_timeline_lines(told.timeline), "", _cache_line(told.cache)]
    return lines


def _choice_lines(told: Explanation) -> list[str]:
    choice = told.choice
    if choice is None:
        return ["  decision none was taken"]
    if choice.decode is None:
        lines = [f"  {choice.kind:<8} after {choice.at_ms:g} ms: {choice.reason}"]
        if choice.earliest_feasible_ms is not None:
            confidence = "" if choice.confidence is None else f", confidence {choice.confidence:.0%}"
            lines.append(f"  earliest in {choice.earliest_feasible_ms:g} ms{confidence}")
    else:
        pair = _pair(choice.prefill, choice.decode)
        lines = [f"  route    {pair}, decided after {choice.at_ms:g} ms: {choice.reason}"]
    return [*lines, f"  because  {choice.because}"]


def _outcome_lines(told: Explanation) -> list[str]:
    rows = [("", "PREDICTED", "90 % INTERVAL", "ACTUAL", "TARGET")]
    for name, guess, actual, target in (
        ("  TTFT", told.predicted_ttft, told.actual.ttft_ms, told.ttft_target_ms),
        ("  TPOT", told.predicted_tpot, told.actual.tpot_ms, told.tpot_target_ms),
    ):
        interval = "-" if guess is None else f"{guess.low_ms:.1f} - {guess.high_ms:.1f} ms"
        rows.append((name, "-" if guess is None else _ms(guess.ms), interval, _ms(actual), _ms(target)))
    total = told.actual.e2e_ms
    rows.append(("  total", "-", "-", _ms(total), f"{told.actual.output_tokens} tokens"))
    return _table(rows)


def _candidate_lines(candidates: Sequence[Candidate]) -> list[str]:
    header = (
        "",
        "PREFILL WORKER",
        "DECODE WORKER",
        "TTFT",
        "TPOT",
        "QUEUE",
        "PREFILL",
        "TRANSFER",
        "BLOCKS",
        "FIRST STEP",
    )
    rows: list[tuple[str, ...]] = [header]
    for c in candidates:
        parts = (c.queue_ms, c.prefill_ms, c.transfer_ms, c.blocks_ms, c.first_step_ms)
        mark = "  *" if c.chosen else "   "
        rows.append((mark, c.prefill or "-", c.decode, _within(c.ttft), _within(c.tpot), *map(_ms, parts)))
    return _table(rows)


def _within(guess: Predicted | None) -> str:
    if guess is None:
        return "-"
    return f"{guess.ms:.1f} ms +- {(guess.high_ms - guess.ms) / guess.ms:.0%}" if guess.ms else "0.0 ms"


def _timeline_lines(line: TimelineTold) -> list[str]:
    """Draw each stage where it lies between arrival and the first byte."""
    lines = [f"time line, {line.total_ms:.3f} ms to {_end(line.until)}:"]
    passed_ms = 0.0
    for stage in line.stages:
        begin, end = _column(passed_ms, line.total_ms), _column(passed_ms + stage.ms, line.total_ms)
        passed_ms += stage.ms
        if stage.ms:
            bar = " " * begin + "#" * max(1, end - begin)
            name = stage.name.replace("_", " ")
            lines.append(f"  {name:<17} {stage.ms:11.3f} ms  |{bar[: _BAR + 1]:<{_BAR + 1}}|")
    beside = []
    if line.transfer_hidden_ms is not None:
        beside.append(f"transfer hidden behind prefill {line.transfer_hidden_ms:.3f} ms")
    if line.output_ms is not None:
        beside.append(f"output after the first byte {line.output_ms:.3f} ms")
    return [*lines, f"  beside it: {', '.join(beside)}"] if beside else lines


def _end(until: str) -> str:
    return until if until == "now" else f"the {until}"


def _column(at_ms: float, total_ms: float) -> int:
    return round(_BAR * at_ms / total_ms) if total_ms else 0


def _cache_line(cache: CacheUse) -> str:
    def known(tokens: int | None) -> str:
        return "?" if tokens is None else str(tokens)

    prompt = known(cache.prompt_tokens)
    return (
        f"cache: of {prompt} prompt tokens (about {cache.prompt_tokens_estimate} estimated) "
        f"prefill had {known(cache.cached_prefill)} (believed {cache.believed_prefill}), "
        f"decode had {known(cache.cached_decode)} (believed {cache.believed_decode}) "
        f"and was handed {known(cache.received_decode)}"
    )


def _pair(prefill: str | None, decode: str) -> str:
    return f"{decode} alone" if prefill is None else f"{prefill} + {decode}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
