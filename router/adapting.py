"""The policy as it is in force, brought up to what workers show: costs that are learnt, speeds that differ.

Owns when the policy is made anew, and the correction of each worker. Must not decide anything by itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from core.policy.context import PolicyContext
from core.policy.correction import SpeedCorrection
from core.policy.learning import Learning
from core.policy.protocol import Policy, PredictingPolicy
from core.policy.registry import policy_named
from core.types import (
    ClusterView,
    Decision,
    RequestShape,
    Role,
    Route,
    WorkerHello,
    WorkerRecord,
    WorkerSpeed,
    WorkerState,
)
from router.event_log import EventLog

ADAPT_S: Final = 2.0
_AS_PREDICTED: Final = WorkerSpeed()

log = logging.getLogger(__name__)


class AdaptingPolicy:
    """A policy whose context follows what is observed; implements PredictingPolicy and cluster.pool.StepWatch."""

    def __init__(self, name: str, context: PolicyContext, event_log: EventLog | None = None) -> None:
        """Make the policy called `name`. Raises ConfigError if there is none."""
        self._name = name
        self._event_log = event_log
        self._learning = Learning(context)
        self._policy: Policy | PredictingPolicy = policy_named(name, context)
        self._corrections: dict[str, tuple[int, SpeedCorrection]] = {}  # with the worker's epoch, by worker id

    @property
    def context(self) -> PolicyContext:
        """What the policy in force was made with; another object when that has changed."""
        return self._learning.context

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        """Place one request; see Policy."""
        return self._policy.decide(request, cluster, now_s)

    def options(self, request: RequestShape, cluster: ClusterView, now_s: float, *, limit: int) -> tuple[Route, ...]:
        """List the routes that were open; of a policy that does not predict, the one it takes."""
        if isinstance(self._policy, PredictingPolicy):
            return self._policy.options(request, cluster, now_s, limit=limit)
        decision = self._policy.decide(request, cluster, now_s)
        return (decision,) if isinstance(decision, Route) else ()

    def stepped(self, record: WorkerRecord, hello: WorkerHello, state: WorkerState) -> WorkerSpeed:
        """Take a new state of a worker; return how its steps compare with what is predicted of them."""
        if not state.step_seqs and not state.step_prompt_tokens:
            return self._speed_of(record)
        block_size = hello.fingerprint.block_size
        self._learning.observe_step(record.role, state, block_size)
        correction = self._correction(record)
        if correction is None:
            return _AS_PREDICTED
        correction.observe_step(state, block_size)
        return correction.speed

    def answered(self, output_tokens: int, overhead_s: float | None) -> None:
        """Take the length of an output that has ended, and what nothing accounts for in the time to its first token."""
        self._learning.observe_output(output_tokens)
        if overhead_s is not None:
            self._learning.observe_overhead(overhead_s)

    def adapt(self) -> None:
        """Make the policy anew if what was learnt changes its predictions noticeably; its log then begins anew."""
        before = self._learning.context
        context = self._learning.refined()
        if context is None:
            return
        self._policy = policy_named(self._name, context)
        if context.pools is not before.pools:  # speeds are told beside the costs of the pools
            self._corrections.clear()
        if self._event_log is not None:
            self._event_log.reopened(context)
        log.info(
            "predictions follow what workers showed: %s", ", ".join(_learnt(context)) or "output lengths or overhead"
        )

    async def keep_adapting(self) -> None:
        """Adapt every ADAPT_S seconds."""
        while True:
            await asyncio.sleep(ADAPT_S)
            self.adapt()

    def _speed_of(self, record: WorkerRecord) -> WorkerSpeed:
        known = self._corrections.get(record.worker_id)
        return known[1].speed if known is not None and known[0] == record.epoch else _AS_PREDICTED

    def _correction(self, record: WorkerRecord) -> SpeedCorrection | None:
        known = self._corrections.get(record.worker_id)
        if known is not None and known[0] == record.epoch:
            return known[1]
        pool = self._learning.context.pools.get(record.role)
        if pool is None or pool.cost is None:
            return None
        made = SpeedCorrection(pool.cost, record.role)
        self._corrections[record.worker_id] = (record.epoch, made)
        return made


def _learnt(context: PolicyContext) -> list[str]:
    """Tell the costs in words."""
    words = []
    for role in Role:
        pool = context.pools.get(role)
        if pool is not None and pool.cost is not None:
            prompt_ms, step_ms = 1000 * pool.cost.prefill_s(512), 1000 * pool.cost.decode_s(8, 4096)
            words.append(f"{role} 512 prompt tokens {prompt_ms:.1f} ms, step of 8 {step_ms:.1f} ms")
    return words
