"""What the console shows of workers, hand-overs, requests and promises, as plain values for JSON.

Owns that form, which the page's script reads; times are milliseconds unless their name says otherwise. Pure: what is
shown is handed in. Must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from core.policy.calibration import Coverage
from core.router_spec import SLOTarget
from core.types import Rejection, Role, WorkerRecord, WorkerView
from router.console.history import BUCKET_S, MINUTE_BUCKETS, NUM_BUCKETS, History, Sums
from router.record import RequestRecord, verdict_of

Told = dict[str, Any]  # plain values, as JSON has them
MAX_SAMPLE: Final = 1000  # requests that percentiles of the last minute are taken from
PERCENTILES: Final = (50, 95)
_MINUTE_S: Final = 60.0
_KEPT_STATES: Final = {True: "kept", False: "missed", None: "other"}


def workers_told(
    workers: Iterable[WorkerView], announced: Iterable[WorkerRecord], breaker: Callable[[str], str]
) -> list[Told]:
    """Tell of every worker, by role and id; one that is only announced has no load."""
    connected = {w.record.worker_id: _worker(w, breaker(w.record.worker_id)) for w in workers}
    known = {r.worker_id: {"id": r.worker_id, "role": r.role, "node": r.node, "up": False} for r in announced}
    order = list(Role)
    return sorted((known | connected).values(), key=lambda w: (order.index(w["role"]), _natural(w["id"])))


def _natural(worker_id: str) -> tuple[str, int, str]:
    """Sort decode-2 before decode-10."""
    name, _, number = worker_id.rpartition("-")
    return (name, int(number), "") if number.isascii() and number.isdecimal() else (worker_id, -1, "")


def _worker(worker: WorkerView, breaker: str) -> Told:
    record, state = worker.record, worker.state
    return {
        "id": record.worker_id,
        "role": record.role,
        "node": record.node,
        "up": True,
        "draining": state.draining,
        "breaker": breaker,
        "running": state.num_running,
        "waiting": state.num_waiting,
        "kv_used": state.kv_blocks_used,
        "kv_total": state.kv_blocks_total,
        "step_ms": _ms(state.step_s),
        "inflight": worker.inflight_requests,
        "owed_tokens": worker.inflight_prompt_tokens,
    }


def transfers_told(running: Iterable[RequestRecord], now_s: float) -> list[Told]:
    """Count the hand-overs under way by pair, the busiest first; each since both of its legs were sent."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for record in running:
        prefill, decode, sent_s = record.prefill, record.decode, record.marks.submitted_s
        if not record.is_handing_over or prefill is None or decode is None or sent_s is None:
            continue
        pairs.setdefault((prefill, decode), []).append(now_s - sent_s)
    found = [
        {"prefill": pair[0], "decode": pair[1], "count": len(ages_s), "oldest_ms": _ms(max(ages_s))}
        for pair, ages_s in pairs.items()
    ]
    return sorted(found, key=lambda t: (-t["count"], t["prefill"], t["decode"]))


def request_told(record: RequestRecord, *, epoch_s: float, now_s: float, with_tenant: bool) -> Told:
    """Tell of one request; `epoch_s` is the moment `now_s` of the marks' clock, since the epoch."""
    line = record.timeline_at(now_s)
    facts = record.answering_facts or record.prefill_facts
    shape, decision = record.shape, record.decision
    counted = facts.prompt_tokens if facts is not None else 0
    return {
        "id": record.request_id,
        "tenant": record.tenant if with_tenant else "",
        "class": record.slo.name,
        "at": round(epoch_s - (now_s - record.marks.arrived_s), 3),
        "running": record.is_running,
        "verdict": "refused" if record.refusal else verdict_of(record),
        "state": "running" if record.is_running else _KEPT_STATES[record.kept],
        "prefill": record.prefill,
        "decode": record.decode,
        "reason": _reason(record.refusal, decision.reason if decision is not None else ""),
        "rejected": isinstance(decision, Rejection),
        "prompt_tokens": counted or (0 if shape is None else shape.prompt_tokens),
        "output_tokens": record.output_tokens,
        "ttft_ms": None if record.actual_ttft_s is None else _ms(record.actual_ttft_s),
        "tpot_ms": None if record.tpot_s is None else _ms(record.tpot_s),
        "total_ms": line.total_us / 1000 if record.is_running else _ms(record.e2e_s),
        "stages_us": line.stages_us,
    }


def _reason(refusal: str, reason: str) -> str:
    return f"{refusal}: {reason}" if refusal and reason else refusal or reason


def class_told(
    target: SLOTarget,
    history: History,
    tenant: str | None,
    *,
    now_s: float,
    up_s: float,
    latest: Sequence[RequestRecord],
    coverage: Iterable[Coverage],
) -> Told:
    """Tell how the promise to one class is kept; `latest` are the requests that ended last, of all classes."""
    name = target.name
    minute = history.sums(tenant, name, now_s, MINUTE_BUCKETS)
    hour = history.sums(tenant, name, now_s, NUM_BUCKETS)
    minute_s = min(up_s, (MINUTE_BUCKETS - 1) * BUCKET_S + now_s % BUCKET_S)
    mine = [r for r in latest if r.slo.name == name and r.outcome == "ok"]
    return {
        "name": name,
        "tier": target.tier,
        "target": target.attainment,
        "ttft_ms": _ms(target.ttft_s),
        "tpot_ms": _ms(target.tpot_s),
        "now": _sums(minute, minute_s),
        "hour": _sums(hour, min(up_s, (NUM_BUCKETS - 1) * BUCKET_S + now_s % BUCKET_S)),
        "ttft": _percentiles([r.ttft_s for r in mine if r.ttft_s is not None]),
        "tpot": _percentiles([r.tpot_s for r in mine if r.tpot_s is not None]),
        "refusals": {
            "now": history.refusals(tenant, name, now_s, MINUTE_BUCKETS),
            "hour": history.refusals(tenant, name, now_s, NUM_BUCKETS),
        },
        "doubts": [f"{c.quantity.upper()}: {c.reason}" for c in coverage if c.slo_class == name and c.is_refuted],
    }


def ended_lately(records: Iterable[RequestRecord], now_s: float) -> list[RequestRecord]:
    """Take the requests of the last minute out of all, the latest ended first, MAX_SAMPLE of them at most."""
    found: list[RequestRecord] = []
    for record in records:
        ended_s = record.marks.ended_s
        if ended_s is None:
            continue
        if ended_s < now_s - _MINUTE_S or len(found) == MAX_SAMPLE:
            break
        found.append(record)
    return found


def _sums(sums: Sums, over_s: float) -> Told:
    over_s = max(over_s, 1.0)
    timed = max(sums.timed, 1)
    return {
        "kept": sums.kept,
        "missed": sums.missed,
        "refused": sums.refused,
        "other": sums.other,
        "attainment": sums.attainment,
        "goodput": round(sums.kept / over_s, 3),
        "tokens_per_s": round(sums.output_tokens / over_s, 1),
        "timed": sums.timed,
        "stages_ms": [round(us / 1000 / timed, 3) for us in sums.stages_us],
    }


def _percentiles(values_s: list[float]) -> list[float] | None:
    """Give the nearest-rank percentiles; None: there is nothing to take them of."""
    if not values_s:
        return None
    values_s.sort()
    return [_ms(values_s[max(0, -(-len(values_s) * p // 100) - 1)]) for p in PERCENTILES]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
