"""Asks a decider for sizes and roles every few seconds, and has what it decides done, or only shown.

Owns the loop, the refusal of decisions that break the limits, and what is kept of each decision: who made it, why, and
what came of it. Must not decide.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from cluster.cluster_events import EventLog
from cluster.cluster_status import DecisionStatus
from core.config.models import BatonConfig
from core.control.actions import Decider, DeciderFactory, Decision, Observation, PoolSizes, RoleFlip
from core.errors import ConfigError

DECIDE_S: Final = 30.0  # a decision that takes longer is not waited for
OUTCOME_S: Final = 60.0  # of measurements, before a decision and after it is carried out, that its outcome is told by
DECISIONS_KEPT: Final = 50
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
    kept_before: str
    done_s: float | None = None  # when it was carried out


class Scaling:
    """Keeps the decisions of one cluster; `run` it as a task."""

    def __init__(
        self, pools: Pools, log: EventLog, *, elapsed_s: Callable[[], float], make: DeciderFactory | None
    ) -> None:
        self._pools = pools
        self._log = log
        self._elapsed_s = elapsed_s
        self._make = make
        self._decider: Decider | None = None
        self._asking: asyncio.Task[Decision | None] | None = None  # that runs
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

    async def run(self, config: Callable[[], BatonConfig], observe: Callable[[], object]) -> None:
        """Decide until cancelled; `observe` gives an Observation, or None when there is nothing to see."""
        while True:
            scaling = config().scaling
            await asyncio.sleep(scaling.interval_s)
            observation = await observe()  # type: ignore[misc]
            if observation is None:
                continue
            self._measure(observation)
            if config().scaling.mode != "off":
                await self._decide(config(), observation)

    def note(self, by: str, decision: Decision, outcome: str = "") -> int:
        """Keep a decision; return its number."""
        self._num_decisions += 1
        flips = tuple(f"{flip.worker_id} becomes {flip.to}" for flip in decision.flips)
        self._decisions.append(
            DecisionStatus(
                number=self._num_decisions,
                elapsed_s=self._elapsed_s(),
                by=by,
                wanted=decision.sizes,
                flips=flips,
                reason=decision.reason,
                figures=dict(decision.figures),
                outcome=outcome,
            )
        )
        sizes = f"{decision.sizes.prefill} prefill, {decision.sizes.decode} decode"
        what = "; ".join((sizes, *flips, decision.reason))
        self._log.note(SUBJECT, f"{by}: {what}" + (f" ({outcome})" if outcome else ""))
        return self._num_decisions

    def carry_out(self, by: str, decision: Decision) -> None:
        """Have a decision done, flips first, and its outcome told later. Raises ConfigError, with what can be done."""
        for flip in decision.flips:
            self._pools.flip(flip, decision.reason)
        self._pools.want(decision.sizes)
        number = self.note(by, decision)
        now_s = time.monotonic()
        self._pending.append(_Pending(number, now_s, self._kept(now_s - OUTCOME_S, now_s)))

    async def _decide(self, config: BatonConfig, observation: Observation) -> None:
        decision = await self._ask(config, observation)
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

    async def _ask(self, config: BatonConfig, observation: Observation) -> Decision | None:
        """Ask the decider, on a thread of its own; one that fails or takes too long has decided nothing."""
        if self._make is None or self._asking is not None:
            return None
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
        return None

    def _ask_here(self, config: BatonConfig, observation: Observation) -> Decision | None:
        assert self._make is not None
        decider = self._decider = self._decider or self._make(config)
        return decider.decide(observation)

    def _asked(self, asking: asyncio.Task[Decision | None]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # retrieved: whoever asked may have stopped waiting

    def _measure(self, observation: Observation) -> None:
        """Take up what was kept, and tell the outcome of decisions that are old enough."""
        now_s = time.monotonic()
        ended = sum(report.num_ended for report in observation.classes)
        self._ended.append((now_s, ended, sum(report.num_kept for report in observation.classes)))
        for pending in list(self._pending):
            if pending.done_s is None and not self._pools.is_changing:
                pending.done_s = now_s
            if pending.done_s is not None and now_s - pending.done_s >= OUTCOME_S:
                self._pending.remove(pending)
                took_s = pending.done_s - pending.began_s
                kept = self._kept(pending.done_s, now_s)
                self._tell_outcome(
                    pending.number, f"done in {took_s:.0f} s; {pending.kept_before} before, {kept} after"
                )
        begin_s = min([now_s, *(p.began_s for p in self._pending)]) - OUTCOME_S
        while self._ended and self._ended[0][0] < begin_s:
            self._ended.popleft()

    def _kept(self, since_s: float, until_s: float) -> str:
        """Say which share of requests kept their SLO between two moments."""
        told = [(ended, kept) for at_s, ended, kept in self._ended if since_s <= at_s <= until_s]
        num_ended, num_kept = sum(ended for ended, _ in told), sum(kept for _, kept in told)
        return f"SLO kept by {num_kept / num_ended:.1%} of {num_ended}" if num_ended else "no request ended"

    def _tell_outcome(self, number: int, outcome: str) -> None:
        for index, decision in enumerate(self._decisions):
            if decision.number == number:
                self._decisions[index] = replace(decision, outcome=outcome)
        self._log.note(SUBJECT, f"decision {number}: {outcome}")
