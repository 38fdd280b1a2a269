"""What a reader of the plan must know beyond its figures. Owns the sentences only."""

from __future__ import annotations

from sim.cluster import Admission, Order
from sim.plan import PlanQuestion
from sim.search.families import Bests
from sim.search.goodput import RESOLUTION
from sim.search.race import Found

_SHORT_RUN = 10.0  # a simulated run should be this many times as long as a request may take


def notes_on(question: PlanQuestion, best: Found, bests: Bests, *, seeds: int, doubtful: bool) -> tuple[str, ...]:
    """List the notes for a plan that found something."""
    notes = [f"goodput is searched in steps of {RESOLUTION:.1%}, over {seeds} seed{'s' if seeds > 1 else ''}"]
    if doubtful and bests.one_pool and bests.disaggregated:
        notes.append(
            f"no clear difference: one pool {bests.one_pool.rate:.3g}/s, P/D {bests.disaggregated.rate:.3g}/s; "
            "neither leads in 95 of 100 draws of fit error and trace"
        )
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
