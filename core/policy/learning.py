"""What a policy is told, brought up to what was observed: costs where no profile gives them, what steps do not account
for in the time to the first token, and the mean output.

Owns when a change is worth telling. Whoever drives the policy makes it anew from `refined` and opens its event log
anew with that context, so that a replay decides by the same figures. A stateful accountant; must not know policies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Final

from core.latency.online import OnlineCost, cost_of
from core.latency.step import StepCost
from core.policy.context import PolicyContext, PoolFacts
from core.types import Role, WorkerState

_NOTICED: Final = 0.1  # a prediction that moved by so much of itself is told
_OUTPUT_NOTICED: Final = 0.2  # and a mean output
_OUTPUTS: Final = 256  # the mean forgets about as many outputs
_FIRST_OUTPUTS: Final = 16  # as many outputs of the mean it was told weigh before the first
_OVERHEADS: Final = 128  # latest requests whose median overhead is told
_LEAST_OVERHEADS: Final = 16
_OVERHEAD_NOTICED_S: Final = 0.002  # and an overhead, which must also have moved by _OUTPUT_NOTICED of itself
_PROBES: Final = ((128, 1, 128), (512, 8, 4096), (2048, 32, 32768))  # prompt tokens; sequences and their context
Terms = tuple[float, float, float]


class Learning:
    """Refines one context."""

    def __init__(self, context: PolicyContext) -> None:
        """Begin with what is known: costs that are given stay."""
        self._context = context
        self._unknown = frozenset(role for role in Role if _cost(context, role) is None)
        self._seen = {role: OnlineCost() for role in Role}
        self._overheads: deque[float] = deque(maxlen=_OVERHEADS)
        self._mean, self._outputs = context.mean_output_tokens, float(_FIRST_OUTPUTS)

    @property
    def context(self) -> PolicyContext:
        """The context as it was last told."""
        return self._context

    def observe_step(self, role: Role, state: WorkerState, block_size: int) -> None:
        """Take in the latest step of a worker, as its frame tells; see SpeedCorrection.observe_step."""
        if not self._unknown:
            return
        tokens = state.step_prompt_tokens
        if not tokens:
            self._seen[role].observe_decode(state.step_seqs, state.kv_blocks_used * block_size, state.step_s)
        elif role is Role.PREFILL or state.step_seqs <= 1:
            # One sequence of a step with prompt tokens is the prompt's own. What these tokens stood behind the frame
            # does not tell, so that attention is learnt as a part of their price; pairs made up of the step's tokens
            # alone had a prompt of four chunks cost twice its time.
            self._seen[role].observe_prompt(tokens, 0.0, state.step_s)

    def observe_output(self, tokens: int) -> None:
        """Take in the length of an output that has ended."""
        if tokens > 0:
            self._outputs = min(self._outputs + 1.0, float(_OUTPUTS))
            self._mean += (tokens - self._mean) / self._outputs

    def observe_overhead(self, seconds: float) -> None:
        """Take in what of a request's time to its first token neither queue, steps nor transfer account for."""
        self._overheads.append(seconds)

    def refined(self) -> PolicyContext | None:
        """Make the context anew if something changed noticeably; None if not. Costs a millisecond: ask now and then."""
        context = self._context
        costs = self._fitted() if self._unknown else {}
        told = {role: _cost(context, role) for role in costs}
        pools = context.pools
        if any(_differ(before, costs[role]) for role, before in told.items()):
            pools = dict(pools) | {role: replace(_facts(context, role), cost=cost) for role, cost in costs.items()}
        mean = context.mean_output_tokens
        if abs(self._mean - mean) > _OUTPUT_NOTICED * mean:
            mean = self._mean
        overhead_s = self._overhead_s()
        if pools is context.pools and mean == context.mean_output_tokens and overhead_s == context.request_overhead_s:
            return None
        self._context = replace(context, pools=pools, mean_output_tokens=mean, request_overhead_s=overhead_s)
        return self._context

    def _overhead_s(self) -> float:
        """Say what is told of the overhead: the median of the latest, or as before if that is much the same."""
        told_s = self._context.request_overhead_s
        if len(self._overheads) < _LEAST_OVERHEADS:
            return told_s
        seen_s = median(self._overheads)
        moved_s = abs(seen_s - told_s)
        return seen_s if moved_s > _OVERHEAD_NOTICED_S and moved_s > _OUTPUT_NOTICED * told_s else told_s

    def _fitted(self) -> Mapping[Role, StepCost]:
        """Fit the unknown roles; what a role's workers never do is taken over from the other's."""
        prompts = {role: seen.prompt_terms() for role, seen in self._seen.items()}
        decodes = {role: seen.decode_terms() for role, seen in self._seen.items()}
        fitted = {}
        for role in self._unknown:
            other = Role.DECODE if role is Role.PREFILL else Role.PREFILL
            prompt, decode = prompts[role] or prompts[other], decodes[role] or decodes[other]
            if prompt is not None and decode is not None:
                fitted[role] = cost_of(prompt, decode)
        return fitted


def _cost(context: PolicyContext, role: Role) -> StepCost | None:
    facts = context.pools.get(role)
    return None if facts is None else facts.cost


def _facts(context: PolicyContext, role: Role) -> PoolFacts:
    return context.pools.get(role) or PoolFacts(None)


def _differ(before: StepCost | None, after: StepCost) -> bool:
    if before is None:
        return True
    times = [(before.prefill_s(tokens), after.prefill_s(tokens)) for tokens, _, _ in _PROBES]
    times += [(before.decode_s(seqs, context), after.decode_s(seqs, context)) for _, seqs, context in _PROBES]
    return any(abs(new_s - old_s) > _NOTICED * old_s for old_s, new_s in times)
