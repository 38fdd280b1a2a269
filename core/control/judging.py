"""What became of decisions: attainment after one against before it, once what was changed has settled.

Owns the comparison. A verdict counts against a decision only if the traffic stayed what it was. Must not decide.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from core.control.actions import ClassReport, Decision, DecisionOutcome, Observation, Verdict
from core.control.demand import Traffic

_NOTICED: Final = 0.03  # attainment that differs by less is equal
_ALIKE: Final = 0.2  # traffic that differs by less is equal
_LEAST_ENDED: Final = 30  # requests, to say anything of


class Attainment:
    """The kept share of the requests that ended in the last `window_s`; a stateful accountant."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, tuple[ClassReport, ...]]] = deque()

    def observe(self, seen: Observation) -> None:
        """Take in one interval."""
        self._seen.append((seen.now_s, seen.classes))
        while self._seen[0][0] <= seen.now_s - self._window_s:
            self._seen.popleft()

    def forget(self) -> None:
        """Begin anew: what was measured is of a cluster that is no more."""
        self._seen.clear()

    @property
    def ended(self) -> int:
        """Requests in the window."""
        return sum(report.num_ended for _, reports in self._seen for report in reports)

    @property
    def share(self) -> float:
        """Their kept share; 1 without any."""
        kept = sum(report.num_kept for _, reports in self._seen for report in reports)
        return kept / self.ended if self.ended else 1.0

    @property
    def margin(self) -> float:
        """By how much the class that is worst off exceeds its promised share."""
        counts: dict[str, tuple[int, int, float]] = {}
        for _, reports in self._seen:
            for report in reports:
                ended, kept, _ = counts.get(report.slo_class, (0, 0, 0.0))
                counts[report.slo_class] = (ended + report.num_ended, kept + report.num_kept, report.attainment)
        return min((kept / ended - promised for ended, kept, promised in counts.values() if ended), default=0.0)


@dataclass(frozen=True, slots=True)
class _Open:
    decision: Decision
    at_s: float
    attainment: float
    ended: int
    traffic: Traffic


class Judge:
    """Judges one decision at a time; a later one closes an earlier one unjudged."""

    def __init__(self, *, settle_s: float, window_s: float) -> None:
        """Wait `settle_s` after a change is complete, then measure for `window_s`."""
        self._settle_s, self._window_s = settle_s, window_s
        self._open: _Open | None = None
        self._complete_s: float | None = None
        self._after = Attainment(window_s)

    def decided(self, decision: Decision, now_s: float, before: Attainment, traffic: Traffic) -> None:
        """Note what it was like when a decision was taken."""
        self._open = _Open(decision, now_s, before.share, before.ended, traffic)
        self._complete_s = None
        self._after = Attainment(self._window_s)

    def observe(self, seen: Observation, traffic: Traffic) -> DecisionOutcome | None:
        """Take in one interval; return the outcome of the open decision when it can be told."""
        opened = self._open
        if opened is None:
            return None
        if seen.is_changing or self._complete_s is None:
            self._complete_s = seen.now_s
            return None
        if seen.now_s - seen.window_s < self._complete_s + self._settle_s:
            return None  # of the warm-up
        self._after.observe(seen)
        if seen.now_s < self._complete_s + self._settle_s + self._window_s:
            return None
        self._open = None
        after = self._after.share
        verdict = self._verdict(opened, after, traffic)
        return DecisionOutcome(opened.decision, opened.at_s, seen.now_s, verdict, opened.attainment, after)

    def _verdict(self, opened: _Open, after: float, traffic: Traffic) -> Verdict:
        if min(opened.ended, self._after.ended) < _LEAST_ENDED:
            return Verdict.TOO_FEW
        if not traffic.is_like(opened.traffic, _ALIKE):
            return Verdict.TRAFFIC_CHANGED
        if abs(after - opened.attainment) <= _NOTICED:
            return Verdict.AS_PREDICTED
        return Verdict.BETTER if after > opened.attainment else Verdict.WORSE
