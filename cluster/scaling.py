"""Asks a decider for sizes and roles every few seconds, and has what it decides done, or only shown.

Owns the loop, the refusal of decisions that break the limits, and what is kept of each decision: who made it, why, and
what came of it. While scaling is off nothing is asked for or measured. Must not decide.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from cluster.cluster_events import EventLog
from cluster.cluster_status import DecisionStatus
from core.config.models import BatonConfig
from core.control.actions import (
    Decider,
    DeciderFactory,
    Decision,
    DecisionOutcome,
    Observation,
    PoolSizes,
    RoleFlip,
)
from core.errors import ConfigError

DECIDE_S: Final = 30.0  # a decision that takes longer is not waited for
OUTCOME_S: Final = 60.0  # of measurements, before a decision and after it is carried out, that its outcome is told by
DECISIONS_KEPT: Final = 50
LOST: Final = "not measured: the controller was made anew"
OPERATOR: Final = "operator"
DECIDER: Final = "decider"
SUBJECT: Final = "scaling"


class Pools(Protocol):
    """Where decisions are carried out."""

    def want(self, sizes: PoolSizes) -> None:
        """Have the pools be of these sizes. Raises ConfigError."""
        ...

    def flip(self, change: RoleFlip, why: str) -> None:
        """Have one worker take the other role. Raises ConfigError."""
        ...

    @property
    def is_changing(self) -> bool:
        """Whether what is wanted is not done."""
        ...


@dataclass
class _Pending:
    """A decision whose outcome is to come."""

    number: int
    began_s: float
    kept_before: str  # empty: nothing was measured
    done_s: float | None = None  # when it was carried out


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a decider said."""

    decision: Decision | None
    outcomes: tuple[DecisionOutcome, ...]
    waits_for: str


_NOTHING: Final = _Answer(None, (), "")


class Scaling:
    """Keeps the decisions of one cluster; `run` it as a task."""

    def __init__(
        self, pools: Pools, log: EventLog, *, make: DeciderFactory | None, told: Callable[[], None] = lambda: None
    ) -> None:
        """Keep nothing yet; `told` is called after each change of `decisions`."""
        self._pools = pools
        self._log = log
        self._make = make
        self._told = told
        self._decider: Decider | None = None
        self._asking: asyncio.Task[_Answer] | None = None  # that runs
        self._asked_anew = asyncio.Event()  # the configuration has changed: the loop looks at once
        self._made: deque[tuple[int, Decision]] = deque(maxlen=DECISIONS_KEPT)  # by the decider, that were carried out
        self._waits_for = ""
        self._decisions: deque[DecisionStatus] = deque(maxlen=DECISIONS_KEPT)
        self._num_decisions = 0
        self._pending: list[_Pending] = []
        self._ended: deque[tuple[float, int, int]] = deque()  # (when told, ended, kept), of OUTCOME_S and the pending
        self._advised: Decision | None = None  # the latest, so that the same advice is given once

    @property
    def decisions(self) -> tuple[DecisionStatus, ...]:
        """The latest, oldest first."""
        return tuple(self._decisions)

    def forget_decider(self) -> None:
        """Have another one made, for the configuration has changed."""
        self._decider = None
        self._waits_for = ""
        self._ended.clear()
        self._asked_anew.set()

    def restore(self, decisions: Sequence[DecisionStatus]) -> None:
        """Go on after the decisions that an earlier life of the controller kept; what became of open ones is lost."""
        self._decisions.extend(replace(decision, outcome=decision.outcome or LOST) for decision in decisions)
        self._num_decisions = max([self._num_decisions, *(decision.number for decision in decisions)])
        self._told()

    def state(self, config: BatonConfig) -> str:
        """Say whether sizes follow the traffic, and what a decision waits for."""
        mode = config.scaling.mode
        return f"{mode}; no decision yet: {self._waits_for}" if mode != "off" and self._waits_for else mode

    async def run(
        self, config: Callable[[], BatonConfig], observe: Callable[[], Awaitable[Observation | None]]
    ) -> None:
        """Decide until cancelled; `observe` gives None when there is nothing to see."""
        while True:
            self._asked_anew.clear()
            try:
                async with asyncio.timeout(config().scaling.interval_s):
                    await self._asked_anew.wait()
                continue
            except TimeoutError:
                pass
            if config().scaling.mode == "off":
                self._close_unmeasured()
                continue
            observation = await observe()
            if observation is not None:
                self._measure(observation)
                await self._decide(config(), observation)

    def note(self, by: str, decision: Decision, outcome: str = "") -> int:
        """Keep a decision; return its number."""
        self._num_decisions += 1
        kept = DecisionStatus(
            number=self._num_decisions,
            elapsed_s=self._log.clock(),
            at_s=time.time(),
            by=by,
            wanted=decision.sizes,
            flips=tuple(f"{flip.worker_id} becomes {flip.to}" for flip in decision.flips),
            reason=decision.reason,
            figures=dict(decision.figures),
            outcome=outcome,
        )
        self._decisions.append(kept)
        self._log.note(SUBJECT, f"{by}: {kept.text}; {decision.reason}" + (f" ({outcome})" if outcome else ""))
        self._told()
        return self._num_decisions

    def carry_out(self, by: str, decision: Decision) -> None:
        """Have a decision done, flips first, and its outcome told later. Raises ConfigError, with what can be done."""
        for flip in decision.flips:
            self._pools.flip(flip, decision.reason)
        self._pools.want(decision.sizes)
        self.follow(by, decision)

    def follow(self, by: str, decision: Decision) -> None:
        """Keep a decision that is being done, and tell its outcome later."""
        number = self.note(by, decision)
        if by == DECIDER:
            self._made.append((number, decision))
        now_s = time.monotonic()
        before = self._kept(now_s - OUTCOME_S, now_s) if self._ended else ""
        self._pending.append(_Pending(number, now_s, before))

    def look(self) -> None:
        """Take up at once that what was decided is done; called after every change of the pools."""
        if not self._pending or self._pools.is_changing:
            return
        now_s = time.monotonic()
        for pending in self._pending:
            if pending.done_s is None:
                pending.done_s = now_s
                self._change(pending.number, took_s=now_s - pending.began_s)

    async def _decide(self, config: BatonConfig, observation: Observation) -> None:
        answer = await self._ask(config, observation)
        self._take_outcomes(answer.outcomes)
        if answer is not _NOTHING and answer.waits_for != self._waits_for:
            self._waits_for = answer.waits_for
            self._log.note(SUBJECT, answer.waits_for or "all that a decision needs is known")
        decision = answer.decision
        if decision is None or (decision.sizes == observation.wanted and not decision.flips):
            return
        if not observation.limits.allow(decision.sizes):
            self.note(DECIDER, decision, "refused: outside the limits of `scaling` or of the cluster")
        elif config.scaling.mode == "advise":
            advised = replace(decision, figures=(), reason="")
            if advised != self._advised:
                self.note(DECIDER, decision, "advice: scaling.mode is advise")
            self._advised = advised
        else:
            try:
                self.carry_out(DECIDER, decision)
            except ConfigError as exc:
                self.note(DECIDER, decision, f"refused: {exc}")

    def _take_outcomes(self, outcomes: tuple[DecisionOutcome, ...]) -> None:
        """Keep how the decider itself judges what was carried out."""
        for outcome in outcomes:
            number = next((number for number, made in self._made if made is outcome.decision), None)
            if number is not None:
                before, after = f"{outcome.attainment_before:.1%}", f"{outcome.attainment_after:.1%}"
                self._log.note(SUBJECT, f"decision {number}: {outcome.verdict}, attainment {before} -> {after}")
                self._change(number, verdict=outcome.verdict.value)

    async def _ask(self, config: BatonConfig, observation: Observation) -> _Answer:
        """Ask the decider, on a thread of its own; one that fails or takes too long has decided nothing."""
        if self._make is None or self._asking is not None:
            return _NOTHING
        asking = self._asking = asyncio.create_task(
            asyncio.to_thread(self._ask_here, config, observation), name="decide"
        )
        asking.add_done_callback(self._asked)
        try:
            async with asyncio.timeout(DECIDE_S):
                return await asyncio.shield(asking)
        except TimeoutError:
            self._log.note(SUBJECT, f"no decision within {DECIDE_S:g} s", is_failure=True)
        except Exception as exc:  # task boundary: serving must not end with a decider's fault
            self._log.note(SUBJECT, f"the decider failed: {type(exc).__name__}: {exc}", is_failure=True)
        return _NOTHING

    def _ask_here(self, config: BatonConfig, observation: Observation) -> _Answer:
        assert self._make is not None
        decider = self._decider = self._decider or self._make(config)
        decision = decider.decide(observation)
        return _Answer(decision, decider.take_outcomes(), decider.waits_for)

    def _asked(self, asking: asyncio.Task[_Answer]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # retrieved: whoever asked may have stopped waiting

    def _measure(self, observation: Observation) -> None:
        """Take up what was kept, and tell the outcome of decisions that are old enough."""
        now_s = time.monotonic()
        ended = sum(report.num_ended for report in observation.classes)
        self._ended.append((now_s, ended, sum(report.num_kept for report in observation.classes)))
        self.look()
        for pending in list(self._pending):
            if pending.done_s is not None and now_s - pending.done_s >= OUTCOME_S:
                self._pending.remove(pending)
                took_s = pending.done_s - pending.began_s
                kept = self._kept(pending.done_s, now_s)
                before = f"{pending.kept_before} before, " if pending.kept_before else ""
                self._tell_outcome(pending.number, f"done in {took_s:.1f} s; {before}{kept} after")
        begin_s = min([now_s, *(p.began_s for p in self._pending)]) - OUTCOME_S
        while self._ended and self._ended[0][0] < begin_s:
            self._ended.popleft()

    def _close_unmeasured(self) -> None:
        """Tell how long decisions took that are done; what was attained is not measured while scaling is off."""
        self.look()
        for pending in [p for p in self._pending if p.done_s is not None]:
            self._pending.remove(pending)
            assert pending.done_s is not None
            self._tell_outcome(pending.number, f"done in {pending.done_s - pending.began_s:.1f} s")

    def _kept(self, since_s: float, until_s: float) -> str:
        """Say which share of requests kept their SLO between two moments."""
        told = [(ended, kept) for at_s, ended, kept in self._ended if since_s <= at_s <= until_s]
        num_ended, num_kept = sum(ended for ended, _ in told), sum(kept for _, kept in told)
        return f"SLO kept by {num_kept / num_ended:.1%} of {num_ended}" if num_ended else "no request ended"

    def _tell_outcome(self, number: int, outcome: str) -> None:
        self._log.note(SUBJECT, f"decision {number}: {outcome}")
        self._change(number, outcome=outcome)

    def _change(self, number: int, **changes: object) -> None:
        for index, decision in enumerate(self._decisions):
            if decision.number == number:
                self._decisions[index] = replace(decision, **changes)  # type: ignore[arg-type]
        self._told()
