"""What a faster way for the KV would change where one pool wins: whether prefill and decode apart would pay then.

Owns which links are tried. Must not know how a placement is judged, nor how the answer is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from sim.cluster import ClusterSpec, LinkSpec, Mode
from sim.outcome import Target
from sim.plan import Candidate, DeviceGroup, Interval, Plan, PlanQuestion, Progress, Verdict, is_clear

BUSY_LINK = 0.5  # of the time; beyond it, transfers wait for each other long enough to be felt in TTFT
LINKS_BYTES_PER_S = (3.125e9, 6.25e9, 12.5e9, 25e9, 50e9)  # 25 to 400 Gbit/s, as Ethernet and InfiniBand are sold
_LONG = 0.25  # of a TTFT target; a transfer beneath it is not what breaks the promise
_APART = (Mode.DISAGGREGATED, Mode.HYBRID)


@dataclass(frozen=True, slots=True)
class FasterLink:
    """The slowest link with which prefill and decode apart pay, else the fastest that was tried."""

    bytes_per_s: float
    candidate: Candidate | None  # what it carries with that link; None: it keeps the promise at no rate even then
    pays: bool  # it clearly carries more than one pool, or the rate that was asked for at a lower price


class Search(Protocol):
    """Answers a question; the real one is sim.search.search."""

    def __call__(self, question: PlanQuestion, *, progress: Progress | None = None) -> Plan: ...


def try_faster_link(
    plan: Plan, question: PlanQuestion, search: Search, *, progress: Progress | None = None
) -> FasterLink | None:
    """Search again with the fastest link where the link may be why one pool wins; None where it cannot be.

    The placement found with the fastest is then judged with the slower ones. `search` answers the questions.
    """
    if not _may_bind(plan, question):
        return None
    faster = [speed for speed in LINKS_BYTES_PER_S if speed > slowest(question).bytes_per_s]
    if not faster:
        return None
    answer = search(_linked(question, faster[-1]), progress=progress)
    found = answer.best_disaggregated
    if found is None or found.goodput.high <= 0:
        return FasterLink(faster[-1], None, pays=False)
    best = FasterLink(faster[-1], found, pays=_pays(answer, answer, plan, question))
    for speed in faster[:-1] if best.pays else ():
        cluster = replace(found.cluster, link=replace(found.cluster.link, bytes_per_s=speed))
        slower = search(replace(question, fixed=cluster))
        if _pays(slower, answer, plan, question):
            return FasterLink(speed, slower.best_disaggregated, pays=True)
    return best


def slowest(question: PlanQuestion) -> LinkSpec:
    """Return the slowest way that the KV can take between the workers of the question."""
    links = [link for group in question.groups for link in _ways(group, len(question.groups))]
    return min(links, key=lambda link: link.bytes_per_s)


def transfer_s(question: PlanQuestion) -> float:
    """Return how long the KV of a mean prompt takes on the slowest way, in seconds."""
    link = slowest(question)
    prompt = float(question.workload.prompt_tokens.mean())
    return prompt * question.groups[0].profile.kv_bytes_per_token / link.bytes_per_s


def strictest(question: PlanQuestion) -> Target:
    """Return the class with the shortest TTFT among those that have requests."""
    present = set(question.workload.slo_class.tolist()) or {0}
    return min((t for i, t in enumerate(question.targets) if i in present), key=lambda target: target.ttft_s)


def link_busy(cluster: ClusterSpec, rate: float, question: PlanQuestion) -> float:
    """Return the share of the time that each prefill worker's link is busy at a rate; 0 without hand-over."""
    if cluster.prefill is None:
        return 0.0
    prompt_bytes = float(question.workload.prompt_tokens.mean()) * cluster.link.kv_bytes_per_token
    return rate * prompt_bytes / (cluster.link.bytes_per_s * cluster.prefill.replicas)


def room_for_two(question: PlanQuestion) -> bool:
    """Whether the devices hold two workers of the smallest size."""
    workers = 0
    for group in question.groups:
        workers += group.devices // min(shape.gpus for shape in group.profile.shapes)
    return workers > 1


def _may_bind(plan: Plan, question: PlanQuestion) -> bool:
    """Whether one pool is chosen, and the way of the KV takes a good part of the TTFT target or of the time."""
    if question.fixed is not None or plan.best_one_pool is None or plan.best is not plan.best_one_pool:
        return False
    if plan.verdict is Verdict.INFEASIBLE:
        return False
    if not room_for_two(question) or not set(question.modes) & set(_APART):
        return False
    if question.rate is not None and plan.best_one_pool.cluster.decode.replicas == 1:
        return False  # nothing is cheaper than one worker
    if transfer_s(question) >= _LONG * strictest(question).ttft_s:
        return True
    apart = plan.best_disaggregated
    return apart is not None and link_busy(apart.cluster, apart.goodput.mid, question) >= BUSY_LINK


def _pays(answer: Plan, fastest: Plan, plan: Plan, question: PlanQuestion) -> bool:
    """Whether P/D clearly carries more than one pool, or the rate that was asked for at a lower price.

    With a slower link than the `fastest` the ratio to one pool is less by as much as P/D carries less.
    """
    apart, most, together = answer.best_disaggregated, fastest.best_disaggregated, plan.best_one_pool
    if apart is None or most is None or together is None:
        return False
    if question.rate is not None:
        return answer.verdict is not Verdict.INFEASIBLE and apart.price_per_hour < together.price_per_hour
    if fastest.ratio is None:
        return fastest.verdict is Verdict.DISAGGREGATE and apart.goodput.low > 0
    left = apart.goodput.mid / most.goodput.mid
    ratio = Interval(*(left * end for end in (fastest.ratio.low, fastest.ratio.mid, fastest.ratio.high)))
    return ratio.mid > 1 and is_clear(ratio)


def _ways(group: DeviceGroup, groups: int) -> tuple[LinkSpec, ...]:
    return (group.inner_link,) if group.nodes == 1 and groups == 1 else (group.inner_link, group.outer_link)


def _linked(question: PlanQuestion, bytes_per_s: float) -> PlanQuestion:
    """Ask the same of devices whose slower links all have the given bandwidth."""

    def fast(link: LinkSpec) -> LinkSpec:
        return replace(link, bytes_per_s=max(link.bytes_per_s, bytes_per_s))

    groups = (replace(g, inner_link=fast(g.inner_link), outer_link=fast(g.outer_link)) for g in question.groups)
    return replace(question, groups=tuple(groups))
