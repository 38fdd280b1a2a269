"""What a reader of the plan must know beyond its figures. Owns the sentences only."""

from __future__ import annotations

from dataclasses import dataclass

from sim.cluster import Admission, Order
from sim.plan import PlanQuestion
from sim.search.goodput import RESOLUTION
from sim.search.race import Found

_SHORT_RUN = 10.0  # a simulated run should be this many times as long as a request may take


@dataclass(frozen=True, slots=True)
class Findings:
    """What the search noticed of its own answer."""

    seeds: int
    limited: bool = False  # the best keeps the promise up to what the devices can do at all
    unchecked: bool = False  # by the full gear


def notes_on(question: PlanQuestion, best: Found, findings: Findings) -> tuple[str, ...]:
    """List the notes for a plan that found something."""
    plural = "s" if findings.seeds > 1 else ""
    notes = [f"goodput is searched in steps of {RESOLUTION:.1%}, over {findings.seeds} seed{plural}"]
    if findings.limited:
        notes.append(
            f"{best.rate:.3g}/s is where the search stopped: by arithmetic the devices cannot do more for long, and "
            f"{len(question.workload)} requests are too few to show where queues begin; give a longer trace"
        )
    if findings.unchecked:
        notes.append("not checked with the router's own policies")
    routing = best.placement.cluster.routing
    if routing.admission is not Admission.OFF:
        refused = "the TTFT target" if routing.admission is Admission.TTFT else "either target"
        notes.append(
            f"assumes a router that refuses requests predicted to miss {refused}; refused ones count as missed"
        )
    if routing.order is Order.SLACK:
        notes.append("assumes prompts queued by slack to their TTFT target, not by arrival")
    if best.placement.copies > 1:
        notes.append(f"{best.placement.copies} equal units, each inside one node; the KV never leaves a node")
    longest_s = max(t.ttft_s + t.tpot_s * float(question.workload.output_tokens.mean()) for t in question.targets)
    if len(question.workload) / best.rate < _SHORT_RUN * longest_s:
        notes.append(
            f"{len(question.workload)} requests last only {len(question.workload) / best.rate:.0f} s at this rate; "
            "give a longer trace for a firmer answer"
        )
    return tuple(notes)
