"""What `up`, `down` and `status` print.

Owns wording and layout, plain lines only: they are read in terminals, logs and by other programs. Must not know how
anything is done.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cluster.cluster_status import ClusterEvent, ClusterStatus, MemberStatus
from core.config.models import BatonConfig

_SUBJECT_WIDTH = 12
_SHOWN_LOG_LINES = 8
_SHOWN_DECISIONS = 5


class Console:
    """Prints stages with the time since the command began; with `as_json`, on stderr, to keep stdout for the JSON."""

    def __init__(self, *, as_json: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._as_json = as_json
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._begin_s = time.monotonic()

    def stage(self, subject: str, text: str) -> None:
        """Print one stage that is done or that begins."""
        elapsed_s = time.monotonic() - self._begin_s
        lines = text.splitlines() or [""]
        self._say(f"{elapsed_s:7.1f} s  {subject:<{_SUBJECT_WIDTH}} {lines[0]}")
        for line in lines[1:]:
            self._say(" " * (_SUBJECT_WIDTH + 12) + line)

    def events(self, events: Sequence[ClusterEvent]) -> None:
        """Print what the controller reports."""
        for event in events:
            self.stage(event.subject, event.what)

    def block(self, lines: Sequence[str]) -> None:
        """Print lines set apart by an empty one before and after; JSON, if asked for, says the same."""
        if not self._as_json:
            self._say("\n".join(("", *lines, "")))

    def line(self, text: str) -> None:
        """Print one line."""
        self._say(text)

    def warn(self, text: str) -> None:
        """Print one line on stderr."""
        print(text, file=self._err, flush=True)

    def result(self, value: Mapping[str, object]) -> None:
        """Print the result of the command as JSON, if JSON was asked for."""
        if self._as_json:
            print(json.dumps(value, indent=2, ensure_ascii=False), file=self._out, flush=True)

    def _say(self, text: str) -> None:
        print(text, file=self._err if self._as_json else self._out, flush=True)


@dataclass(frozen=True, slots=True)
class RouterLoad:
    """One worker as the router has it: what it runs and holds."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    draining: bool


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """How well the router predicts one quantity of one class."""

    quantity: str  # "ttft" or "tpot"
    coverage: float | None  # share of outcomes within the interval predicted; None: there are none yet
    band: tuple[float, float]  # in which that share may lie by chance
    interval_factor: float
    trusted: bool
    reason: str
    refuted: bool = False  # neither: too little was seen


@dataclass(frozen=True, slots=True)
class PromiseReport:
    """How the promise to one SLO class is kept."""

    slo_class: str
    target: float  # share of requests
    attained_60s: float | None  # None: no request ended
    attained_1h: float | None
    predictions: tuple[PredictionReport, ...]


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What the router answers when asked how it is."""

    health: str  # "ok", "degraded", ...; "no answer" when it gives none
    reason: str
    loads: Mapping[str, RouterLoad]  # by worker id; workers the router is connected to
    promises: tuple[PromiseReport, ...] = ()

    @property
    def serves(self) -> bool:
        """Whether requests that come now are served."""
        return self.health in ("ok", "degraded")


def ready_lines(
    config: BatonConfig, status: ClusterStatus, *, url: str, curl: str, run_dir: str, ray_tools: str, stop: str
) -> list[str]:
    """Write the block that ends a start: all that is needed to use what runs; `curl` is a command up to a path."""
    workers = [member for member in status.members if member.role]
    router = Path(run_dir) / "router.log"
    lines = [f"Ready: {url}", f"  model      {status.model}"]
    for role in dict.fromkeys(member.role for member in workers if member.role):
        pool = [member for member in workers if member.role is role]
        lines.append(f"  {role:<10} {len(pool)}: " + ", ".join(f"{m.name} on {place(m)}" for m in pool))
    for name, promise in config.slo.classes.items():
        share = f"{promise.attainment:.0%} of requests" if promise.attainment < 1 else "every request"
        lines.append(f"  promise    {name}: TTFT {promise.ttft_ms:g} ms, TPOT {promise.tpot_ms:g} ms, {share}")
    lines += [f"  logs       {run_dir} (requests: {router.name})", f"  Ray        {ray_tools}", ""]
    body = json.dumps({"model": status.model, "prompt": "To be, or not to be", "max_tokens": 16})
    key = '  -H "Authorization: Bearer $BATON_API_KEY" \\'
    lines += [
        f"{curl}/v1/completions -H 'Content-Type: application/json' \\",
        *([key] if config.router.tenants else []),
    ]
    lines += [f"  -d '{body}'", ""]
    return [*lines, stop]


def place(member: MemberStatus) -> str:
    """Say where a worker runs: node, and the cores or GPUs it has there."""
    if member.cores:
        return f"{member.node}, core{'s' if len(member.cores) > 1 else ''} {', '.join(map(str, member.cores))}"
    return member.node


def status_lines(
    status: ClusterStatus, report: RouterReport, *, url: str, ray_tools: str, plan: Sequence[str] = ()
) -> list[str]:
    """Write what runs as a table, why it is that if it was planned, and what happened last."""
    reason = f" ({report.reason})" if report.reason else ""
    lines = [f"{status.model} at {url or 'no address yet'}: {report.health}{reason}", ""]
    header = ("NAME", "STATE", "EPOCH", "PID", "PAIRING", "RUNNING", "WAITING", "KV BLOCKS", "ADDRESS", "NODE")
    lines += table([header, *(_row(member, report.loads.get(member.name)) for member in status.members)])
    lines += _promise_lines(report.promises)
    ended = [line for m in status.members if m.state in ("ended", "set aside") for line in _end_lines(m)]
    lines += ["", *ended] if ended else []
    lines += ["", f"waits: {status.waits}"] if status.waits else []
    lines += ["", f"planned: {plan[0]}", *(f"  {line}" for line in plan[1:])] if plan else []
    lines += ["", f"Ray      {ray_tools}", f"members  version {status.membership_version}{_wanted(status)}"]
    lines += _decision_lines(status)
    lines += ["", "last events:"] + [f"  {e.elapsed_s:8.1f} s  {e.subject}: {e.what}" for e in status.events[-8:]]
    return lines


def _decision_lines(status: ClusterStatus) -> list[str]:
    """Say whether sizes follow the traffic, and what was decided about the pools last."""
    lines = [f"scaling  {status.scaling}"] if status.scaling else []
    if status.decisions:
        lines += ["", "last decisions:"]
    for decision in status.decisions[-_SHOWN_DECISIONS:]:
        told = decision.told()
        lines.append(f"  {decision.elapsed_s:8.1f} s  {told.text}: {told.reason}")
        lines += [f"{'':14}{told.outcome}"] if told.outcome else []
    return lines


def _end_lines(member: MemberStatus) -> list[str]:
    """Say why a member ended and when it comes back; of one that was set aside, what it wrote last."""
    again = "" if member.retry_in_s is None else f"; started again in {member.retry_in_s:.0f} s"
    if member.state != "set aside":
        return [f"{member.name} ended: {member.reason}{again}; log: {member.log_path}"]
    head = f"{member.name} set aside after {member.num_failures} failures: {member.reason}{again}; log: "
    return [head + member.log_path, *(f"  | {line}" for line in member.last_log_lines[-_SHOWN_LOG_LINES:])]


def _wanted(status: ClusterStatus) -> str:
    wanted = status.wanted
    return "" if wanted is None else f"; wanted: {wanted.prefill} prefill, {wanted.decode} decode"


def _promise_lines(promises: Sequence[PromiseReport]) -> list[str]:
    """Say of each class what it got and whether its predictions hold."""
    if not promises:
        return []
    header = ("CLASS", "PROMISED", "KEPT 60 S", "KEPT 1 H", "TTFT IN INTERVAL", "TPOT IN INTERVAL", "PREDICTIONS")
    rows: list[tuple[str, ...]] = [header]
    notes = []
    for promise in promises:
        within = {p.quantity: _coverage(p) for p in promise.predictions}
        doubted = [p for p in promise.predictions if p.refuted]
        seen = all(p.trusted for p in promise.predictions)
        trust = "-" if not within else "not trusted" if doubted else "trusted" if seen else "not known yet"
        shares = (f"{promise.target:.1%}", _share(promise.attained_60s), _share(promise.attained_1h))
        rows.append((promise.slo_class, *shares, within.get("ttft", "-"), within.get("tpot", "-"), trust))
        notes += [
            f"{promise.slo_class}: admission goes by what is measured, for {p.quantity.upper()} predictions are not "
            f"trusted: {p.reason}"
            for p in doubted
        ]
    return ["", *table(rows), *notes]


def _coverage(prediction: PredictionReport) -> str:
    """Write a share with the band it should lie in, and by how much intervals are widened."""
    if prediction.coverage is None:
        return "-"
    low, high = prediction.band
    widened = "" if prediction.interval_factor < 1.05 else f", widened {prediction.interval_factor:.1f}x"
    return f"{prediction.coverage:.0%} ({low:.0%} - {high:.0%}{widened})"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _row(member: MemberStatus, load: RouterLoad | None) -> tuple[str, ...]:
    state = "draining" if load and load.draining else member.state
    pid = str(member.pid or "-")
    if member.role is None:
        return (member.name, state, "-", pid, "-", "-", "-", "-", member.address or "-", member.node)
    loads = ("-", "-", "-")
    if load is not None:
        loads = (str(load.running), str(load.waiting), f"{load.kv_blocks_used}/{load.kv_blocks_total}")
    pairing, address = member.fingerprint or "-", member.address or "-"
    return (member.name, state, str(member.epoch), pid, pairing, *loads, address, place(member))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the cells of rows of equal length, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
