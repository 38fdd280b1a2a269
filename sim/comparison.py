"""Prefill and decode apart beside one pool, in words: both figures, their difference, and what holds P/D back.

Owns how a placement is named. Must not know the rest of the report, nor how a plan is found.
"""

from __future__ import annotations

import math
from textwrap import wrap

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.faster_link import BUSY_LINK, FasterLink, link_busy, room_for_two, slowest, strictest, transfer_s
from sim.figures import decimals_known, figure, plain, with_interval
from sim.plan import Candidate, Interval, Plan, PlanQuestion, Verdict

WIDTH = 100
_MODE_NAMES = {
    Mode.ONE_POOL: "one pool, whole",
    Mode.ONE_POOL_CHUNKED: "one pool",
    Mode.DISAGGREGATED: "P/D",
    Mode.HYBRID: "hybrid",
}


def placement(cluster: ClusterSpec, letters: tuple[str, ...] = ()) -> str:
    """Write `P/D 3 x tp1 + 5 x tp1`: mode, prefill workers, decode workers; `letters` name their devices."""
    pools = [pool for pool in (cluster.prefill, cluster.decode) if pool is not None]
    texts = [_pool(pool) for pool in pools]
    if letters:
        texts = [f"{text} {letter}" for text, letter in zip(texts, letters, strict=True)]
    return f"{_MODE_NAMES[cluster.mode]} {' + '.join(texts)}"


def per_gpu(candidate: Candidate) -> str:
    """Write the goodput of one device, as exact as the interval of the whole allows."""
    gpus = candidate.cluster.gpus
    goodput = candidate.goodput
    share = Interval(goodput.low / gpus, goodput.mid / gpus, goodput.high / gpus)
    return figure(share.mid, decimals_known(share))


def comparison(plan: Plan, question: PlanQuestion, faster: FasterLink | None = None) -> list[str]:
    """Set the best of both kinds side by side; where one has no figure, say why.

    Empty for a placement that the user named, but for its busy link, and where nothing fits.
    """
    apart, together = plan.best_disaggregated, plan.best_one_pool
    if question.fixed is not None:
        return _busy_link(apart, question) if apart else []
    if apart is None and together is None:
        return []
    lines = [*_kind("prefill and decode", apart, _why_not_apart(question, together)), *_kind("one pool", together, "")]
    if plan.ratio is not None:
        lines += wrap(f"{'':<20}{_difference(plan, plan.ratio)}", WIDTH, subsequent_indent=" " * 20)
    if apart is not None:
        lines += _busy_link(apart, question)
    return lines + _with_faster_link(faster, together)


def steps(cluster: ClusterSpec) -> str:
    """Write how many tokens a step may compute: of prefill, and where prompts share steps with decode."""
    limits = [] if cluster.prefill is None else [str(cluster.prefill.max_num_batched_tokens)]
    if cluster.mode in (Mode.ONE_POOL_CHUNKED, Mode.HYBRID):
        limits.append(str(cluster.decode.max_num_batched_tokens))
    return " + ".join(limits)


def _kind(name: str, candidate: Candidate | None, why_not: str) -> list[str]:
    text = f"keeps the promise at no rate{why_not}"
    if candidate is not None and candidate.goodput.high > 0:
        goodput = f"{with_interval(candidate.goodput)} requests/s, {per_gpu(candidate)} per GPU"
        text = f"{goodput}, {placement(candidate.cluster)} in steps of {steps(candidate.cluster)} tokens"
    return wrap(f"{name:<20}{text}", WIDTH, subsequent_indent=" " * 20)


def _difference(plan: Plan, ratio: Interval) -> str:
    """Tell the ratio of both kinds, in draws of error and traffic that are equal for them, and what it is about."""
    text = ""
    if plan.own_policy is not None:
        apart, together = plan.own_policy
        text = f"the router's own policy keeps {plain(apart)} apart and {plain(together)} together: "
    if math.isinf(ratio.mid):
        return text + "something only apart"
    text += f"{with_interval(ratio)} times as much apart, in equal draws"
    return f"{text}; no clear difference" if plan.verdict is Verdict.UNCLEAR else text


def _why_not_apart(question: PlanQuestion, together: Candidate | None) -> str:
    """Say what keeps prefill and decode apart from the promise, where arithmetic alone shows it."""
    if not room_for_two(question):
        return ": it takes two workers, and the devices hold one"
    if question.rate is not None and together is not None:
        if together.cluster.decode.replicas == 1:
            return " on so few devices: it takes two workers, and one pool carries the rate with one"
        return f" on the {together.cluster.gpus} devices that one pool needs"
    target, took_s = strictest(question), transfer_s(question)
    if took_s < target.ttft_s / 2:
        return ""
    return (
        f": the KV of a mean prompt takes {plain(1000 * took_s)} ms at {_speed(slowest(question).bytes_per_s)}, and "
        f"{target.name} has {plain(1000 * target.ttft_s)} ms to its first token"
    )


def _with_faster_link(faster: FasterLink | None, together: Candidate | None) -> list[str]:
    """Say which way of the KV would make P/D pay, or that none that can be bought would."""
    if faster is None or together is None:
        return []
    links, found = f"with {_speed(faster.bytes_per_s)} of KV from each worker", faster.candidate
    if found is None:
        text = f"not even {links} would prefill and decode apart keep the promise"
    else:
        carried = f"{placement(found.cluster)} would carry {with_interval(found.goodput)} requests/s"
        text = f"{links} {carried} and pay; --inner-bandwidth and --bandwidth plan for it"
        if not faster.pays:
            text = f"even {links} {carried}, not clearly more"
    return wrap(f"{'':<20}{text}", WIDTH, subsequent_indent=" " * 20)


def _speed(bytes_per_s: float) -> str:
    return f"{plain(bytes_per_s / 1e9)} GB/s ({plain(bytes_per_s / 125e6)} Gbit/s)"


def _busy_link(apart: Candidate, question: PlanQuestion) -> list[str]:
    """Say so when it is the way of the KV that holds P/D back."""
    busy = link_busy(apart.cluster, apart.goodput.mid, question)
    if busy < BUSY_LINK:
        return []
    return [
        f"{'':<20}KV keeps each prefill worker's link {plain(100 * min(busy, 1.0), 2)} % busy: a faster one would help"
    ]


def _pool(pool: PoolSpec) -> str:
    pipeline = f"pp{pool.pipeline_parallel}" if pool.pipeline_parallel > 1 else ""
    return f"{pool.replicas} x tp{pool.tensor_parallel}{pipeline}"
