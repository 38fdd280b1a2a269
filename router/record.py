"""What is kept of one request so that it can be explained, measured and traced: one object, filled as it goes.

Owns the notes that the request's own task takes, at the cost of a few attribute stores each. Views and decisions are
kept as the shared immutable objects they are, never copied. Must not hold any part of a prompt or an answer, and must
not compute anything that only a reader of the notes needs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from core.router_spec import SLOTarget
from core.types import ClusterView, Decision, Forecast, Hold, LegFacts, Rejection, RequestShape, Route
from router.timeline import Marks, Timeline, timeline_of
from router.trace_context import TraceContext

MAX_HOLDS: Final = 8  # kept of one request; it may be asked about each time that a worker has room
NO_VIEW: Final = ClusterView()


class Resumed(NamedTuple):
    """One time that a stream went on at another worker."""

    at_s: float  # the last bytes before it, from arrival
    gap_s: float  # from those until the new worker had made again what was sent
    decode: str  # that worker


class RequestRecord:
    """One request, from its arrival until nobody can ask for it any more; one task writes it."""

    __slots__ = (
        "answering_facts",
        "attempts",
        "decision",
        "decision_s",
        "e2e_s",
        "error",
        "excluded",
        "forecast",
        "holding_since_s",
        "holds",
        "is_handing_over",
        "is_told",
        "kept",
        "marks",
        "num_holds",
        "outcome",
        "output_tokens",
        "path",
        "predicted_ttft_s",
        "prefill_facts",
        "refusal",
        "request_id",
        "resumes",
        "shape",
        "slo",
        "status",
        "tenant",
        "timeline",
        "tpot_s",
        "trace",
        "tries",
        "ttft_s",
        "view",
        "waited_s",
    )

    def __init__(self, request_id: str, tenant: str, slo: SLOTarget, arrived_s: float, *, path: str = "") -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.path = path
        self.slo = slo  # with the request's own targets, where it brought some
        self.marks = Marks(arrived_s)
        # What was asked last, and answered: enough to ask again.
        self.shape: RequestShape | None = None
        self.view = NO_VIEW
        self.excluded: frozenset[str] = frozenset()
        self.decision_s = arrived_s
        self.decision: Decision | None = None
        self.forecast: Forecast | None = None  # of the route or the hold decided last
        self.waited_s = 0.0  # from arrival to that decision, which forecasts count from
        self.predicted_ttft_s = 0.0  # from arrival: waited and forecast; nothing without a forecast
        self.holds: tuple[tuple[float, Hold], ...] = ()  # the first MAX_HOLDS, with the time of each
        self.num_holds = 0
        self.holding_since_s: float | None = None
        self.is_told = False  # its client asked to be told in the answer itself
        self.is_handing_over = False  # its prefill leg runs
        self.attempts = 0
        self.tries: tuple[tuple[Route, str], ...] = ()  # those that failed, each with the name of its error
        self.resumes: tuple[Resumed, ...] = ()  # when its stream went on at another worker
        self.prefill_facts: LegFacts | None = None
        self.answering_facts: LegFacts | None = None  # of the leg that made the output
        self.timeline: Timeline | None = None  # None: it runs
        self.status = 0
        self.outcome = ""  # empty: it runs
        self.error = ""
        self.refusal = ""  # name of the error it was refused with; empty: it was not
        self.ttft_s: float | None = None  # of a stream, as passed on
        self.tpot_s: float | None = None
        self.e2e_s = 0.0
        self.output_tokens = 0
        self.kept: bool | None = None  # its SLO; None: it runs, or its client is why it cannot be said
        self.trace: TraceContext | None = None  # None: it is not traced

    def decided(
        self, shape: RequestShape, view: ClusterView, excluded: Collection[str], now_s: float, decision: Decision
    ) -> None:
        """Note what the policy said at `now_s` of `view` without the `excluded` workers."""
        if self.shape is None:
            self.marks.decided_s = now_s
        self.released(now_s)
        self.shape, self.view, self.decision, self.decision_s = shape, view, decision, now_s
        self.waited_s = now_s - self.marks.arrived_s
        self.forecast = forecast = None if isinstance(decision, Rejection) else decision.forecast
        self.predicted_ttft_s = 0.0 if forecast is None else self.waited_s + forecast.ttft_s
        if excluded:
            self.excluded = frozenset(excluded)
        if isinstance(decision, Hold):
            self.holding_since_s = now_s
            self.num_holds += 1
            if self.num_holds <= MAX_HOLDS:
                self.holds = (*self.holds, (now_s, decision))

    def released(self, now_s: float) -> None:
        """Note that the request is held back no longer; without effect when it was not."""
        if self.holding_since_s is not None:
            self.marks.held_s += now_s - self.holding_since_s
            self.holding_since_s = None

    def submitted(self, now_s: float) -> None:
        """Note that a try begins; what was measured of one before counts no more."""
        self.attempts += 1
        self.marks.submitted_s = now_s
        self.is_handing_over = False
        self.prefill_facts = self.answering_facts = None

    def measured(self, prefill: LegFacts | None, answering: LegFacts | None) -> None:
        """Note what workers measured: of the prefill leg, if there was one, and of the leg that made the output."""
        self.prefill_facts, self.answering_facts = prefill, answering

    def failed(self, error: str) -> None:
        """Note that the try on the route decided last ended with the error of this name."""
        if isinstance(self.decision, Route):
            self.tries = (*self.tries, (self.decision, error))

    def resumed(self, broken_s: float, now_s: float, decode: str) -> None:
        """Note that the stream, silent since `broken_s`, goes on at another worker."""
        self.resumes = (*self.resumes, Resumed(broken_s - self.marks.arrived_s, now_s - broken_s, decode))

    def ended(self, now_s: float, *, first_s: float | None) -> None:
        """Note the last byte of the answer, and the first of a stream; make the time line."""
        self.released(now_s)
        self.marks.first_s = first_s
        self.marks.ended_s = now_s
        self.timeline = self.timeline_at(now_s)

    def timeline_at(self, now_s: float) -> Timeline:
        """Split the time so far."""
        if self.timeline is not None:
            return self.timeline
        return timeline_of(
            self.marks,
            self.prefill_facts,
            self.answering_facts,
            is_pair=self.prefill is not None,
            attempts=self.attempts,
            now_s=now_s,
            had_blocks=self._had_blocks(),
        )

    @property
    def is_running(self) -> bool:
        """Its answer is not complete."""
        return self.timeline is None

    @property
    def prefill(self) -> str | None:
        """The prefill worker of the route decided last."""
        return self.decision.prefill if isinstance(self.decision, Route) else None

    @property
    def decode(self) -> str | None:
        """The worker that makes the output, by the route decided last."""
        return self.decision.decode if isinstance(self.decision, Route) else None

    @property
    def actual_ttft_s(self) -> float | None:
        """The TTFT as passed on, of a document as its worker reports it; None where it cannot be told."""
        if self.timeline is None:
            return self.ttft_s
        ttft_us = self.timeline.ttft_us
        return None if ttft_us is None else ttft_us / 1e6

    @property
    def overhead_s(self) -> float | None:
        """What nothing accounts for in the time to a stream's first byte; None where the rest was not measured."""
        line = self.timeline
        if line is None or self.answering_facts is None or line.until != "first byte":
            return None
        return line.unattributed_us / 1e6

    def _had_blocks(self) -> bool:
        """Whether the decode worker was seen to have blocks for the prompt when the request was sent there."""
        facts, decode = self.answering_facts, self.decode
        if facts is None or facts.landed_s or not facts.received_tokens:
            return False  # nobody asks
        worker = next((w for w in self.view.workers if w.record.worker_id == decode), None)
        if worker is None:
            return False
        free = worker.state.kv_blocks_total - worker.state.kv_blocks_used
        return free * worker.hello.fingerprint.block_size >= facts.prompt_tokens

    def believed_cached(self, worker_id: str | None) -> int:
        """Prompt tokens that were believed in a worker's cache when the request was decided."""
        if self.shape is not None:
            for holder, tokens in self.shape.cached:
                if holder == worker_id:
                    return tokens
        return 0


def verdict_of(record: RequestRecord) -> str:
    """Say in words whether the request kept its SLO, and if not, what it missed or why it was refused."""
    if record.is_running:
        return "held back" if record.holding_since_s is not None else "running"
    if record.kept:
        return "kept"
    if record.outcome == "rejected":
        return f"refused: {record.error}"
    if record.outcome != "ok":
        return f"{record.outcome}: {record.error}" if record.error else record.outcome
    missed = []
    if record.ttft_s is None:
        missed.append("the total time")
    elif record.ttft_s > record.slo.ttft_s:
        missed.append("TTFT")
    if record.tpot_s is not None and record.ttft_s is not None and record.tpot_s > record.slo.tpot_s:
        missed.append("TPOT")
    return f"missed {' and '.join(missed)}"
