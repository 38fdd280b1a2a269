"""A plan as JSON, for programs.

Owns the names of the fields. Must not know how a plan is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from core.config.models import PoolsConfig
from sim.cluster import ClusterSpec, PoolSpec
from sim.faster_link import FasterLink
from sim.outcome import Target
from sim.plan import Candidate, Interval, Plan, PlanQuestion, Verdict
from sim.report import Setting

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


def plan_json(
    plan: Plan, question: PlanQuestion, setting: Setting, pools: PoolsConfig | None, faster: FasterLink | None = None
) -> dict[str, Json]:
    """Write everything that the text report says; numbers that are not finite become null."""
    short = plan.shortfall
    stats = plan.stats
    return {
        "ok": plan.verdict is not Verdict.INFEASIBLE,
        "verdict": plan.verdict.value,
        "rate": question.rate,
        "promise": [_target(t) for t in question.targets],
        "model": setting.model,
        "traffic": setting.traffic,
        "devices": [
            {"device": g.profile.device, "nodes": g.nodes, "devices_per_node": g.devices_per_node}
            for g in question.groups
        ],
        "best": _candidate(plan.best, question),
        "best_one_pool": _candidate(plan.best_one_pool, question),
        "best_disaggregated": _candidate(plan.best_disaggregated, question),
        "ratio": _interval(plan.ratio) if plan.ratio else None,  # goodput of P/D over that of one pool
        "own_policy": None
        if plan.own_policy is None
        else {"disaggregated": plan.own_policy[0], "one_pool": plan.own_policy[1]},
        "faster_link": None
        if faster is None
        else {
            "bytes_per_s": faster.bytes_per_s,
            "pays": faster.pays,
            "candidate": _candidate(faster.candidate, question),
        },
        "front": [_candidate(c, question) for c in plan.front],
        "curve": [
            {"rate": p.rate, "goodput": p.goodput, "attainment": _by_class(p.attainment, question)} for p in plan.curve
        ],
        "shortfall": None
        if short is None
        else {
            "binding": short.binding,
            "reason": short.reason,
            "nearest": [_target(t) for t in short.nearest],
            "feasible_rate": short.feasible_rate,
        },
        "pools": None if pools is None else pools.model_dump(mode="json"),
        "gears_differ": plan.gears_differ,
        "stats": {
            "considered": stats.considered,
            "pruned": stats.pruned,
            "simulated": stats.simulated,
            "simulated_requests": stats.simulated_requests,
            "elapsed_s": stats.elapsed_s,
        },
        "notes": [*setting.notes, *plan.notes],
    }


def _candidate(candidate: Candidate | None, question: PlanQuestion) -> Json:
    if candidate is None:
        return None
    cluster, routing = candidate.cluster, candidate.cluster.routing
    return {
        "mode": cluster.mode.value,
        "gpus": cluster.gpus,
        "prefill": _pool(cluster.prefill),
        "decode": _pool(cluster.decode),
        "goodput": _interval(candidate.goodput),
        "goodput_per_gpu": _number(candidate.goodput_per_gpu),
        "attainment": {t.name: _interval(i) for t, i in zip(question.targets, candidate.attainment, strict=False)},
        "price_per_hour": candidate.price_per_hour,
        "kv_between_nodes": candidate.nodes_spanned,
        "link": _link(cluster),
        "routing": {
            "rule": routing.rule.name.lower(),
            "order": routing.order.name.lower(),
            "admission": routing.admission.name.lower(),
            "whole_below_tokens": routing.whole_below_tokens,
            "overflow": routing.overflow,
        },
    }


def _pool(pool: PoolSpec | None) -> Json:
    if pool is None:
        return None
    return {
        "replicas": pool.replicas,
        "tensor_parallel": pool.tensor_parallel,
        "pipeline_parallel": pool.pipeline_parallel,
        "max_num_seqs": pool.max_num_seqs,
        "max_num_batched_tokens": pool.max_num_batched_tokens,
        "kv_capacity_tokens": pool.kv_capacity_tokens,
        "device": pool.device,
    }


def _link(cluster: ClusterSpec) -> Json:
    link = cluster.link
    return {"bytes_per_s": _number(link.bytes_per_s), "latency_s": link.latency_s} if cluster.prefill else None


def _target(target: Target) -> Json:
    return {
        "class": target.name,
        "ttft_ms": _number(target.ttft_s * 1000),
        "tpot_ms": _number(target.tpot_s * 1000),
        "attainment": target.attainment,
    }


def _by_class(shares: Sequence[float], question: PlanQuestion) -> Json:
    return {target.name: share for target, share in zip(question.targets, shares, strict=False)}


def _interval(interval: Interval) -> Json:
    return {"low": _number(interval.low), "mid": _number(interval.mid), "high": _number(interval.high)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
