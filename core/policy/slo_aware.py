"""The policy that predicts: choose the pair that answers soonest, and refuse what nobody can answer in time.

Owns the choice and the admission. Must not know how predictions are made (core.policy.prediction).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from core.policy.context import ClassTarget, PolicyContext
from core.policy.fallback import NO_PAIR, RETRY_AFTER_S, Alone, without_pair
from core.policy.pairing import least_pair
from core.policy.prediction import OUTPUT_TOKENS, PoolForecast, handover_s, transfer_s
from core.policy.protocol import Candidates
from core.types import ClusterView, Rejection, RequestShape, Role, Route, WorkerView

_FULL_S: Final = 1e6  # beyond every time of a worker with room
_NO_TARGET: Final = ClassTarget(math.inf, math.inf)
_USUAL_TARGET: Final = ClassTarget(1.0, 0.1)  # weighs first against other tokens where nothing is promised


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to serve a request, with what is predicted of it; options compare by rank."""

    decode: str
    prefill: str | None
    reason: str
    has_room: bool
    ttft_s: float
    tpot_s: float

    @property
    def rank(self) -> tuple[bool, float, float, str, str]:
        return (not self.has_room, self.ttft_s, self.tpot_s, self.decode, self.prefill or "")


class SLOAware:
    """Picks the pair with room and the least predicted TTFT, and the decode worker with the least TPOT."""

    def __init__(self, context: PolicyContext) -> None:
        """Take costs, targets and limits; both roles must have costs."""
        self._context = context
        self._pools = {role: PoolForecast(context.pools[role]) for role in Role}

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        case = without_pair(request, workers)
        if isinstance(case, Rejection):
            return case
        target = self._context.targets.get(request.slo_class, _NO_TARGET)
        pair = None if case is not None else self._best_pair(request, workers, now_s)
        if pair is None:
            case = case or Alone(workers.decode, NO_PAIR)
            option = _least_strained(self._alone(request, case, now_s), target)
        else:
            option = self._shortcut(request, workers, pair, target, now_s) or pair
        return self._admitted(option, request, target)

    def _admitted(self, option: _Option, request: RequestShape, target: ClassTarget) -> Route | Rejection:
        """Turn an option into a route, or into a rejection when it would miss a target that admission looks at."""
        if self._context.admit_by_ttft and option.ttft_s > target.ttft_s:
            return self._too_late(option, request, target)
        if self._context.admit_by_tpot and option.tpot_s > target.tpot_s:
            reason = f"TPOT {_ms(option.tpot_s)} is the least predicted, the target is {_ms(target.tpot_s)}"
            return Rejection("overloaded", reason, RETRY_AFTER_S)
        return Route(option.decode, option.prefill, option.reason)

    def _too_late(self, option: _Option, request: RequestShape, target: ClassTarget) -> Rejection:
        reason = f"TTFT {_ms(option.ttft_s)} is the least predicted, the target is {_ms(target.ttft_s)}"
        role = Role.DECODE if option.prefill is None else Role.PREFILL
        if self._pools[role].prompt_s(request.prompt_tokens) > target.ttft_s:
            return Rejection("slo_infeasible", f"{reason}; the prompt alone takes longer")
        # A queue shrinks by one second each second.
        return Rejection("overloaded", reason, option.ttft_s - target.ttft_s)

    def _shortcut(
        self, request: RequestShape, workers: Candidates, pair: _Option, target: ClassTarget, now_s: float
    ) -> _Option | None:
        """Let a decode worker that keeps the promise serve a short prompt whole, or one that the pair is late with."""
        below = self._context.whole_below_tokens
        if request.prompt_tokens <= below and below:
            case = Alone(workers.decode, f"at most {below} prompt tokens")
        elif self._context.overflow and pair.ttft_s > target.ttft_s:
            case = Alone(workers.decode, "the pair would be late")
        else:
            return None
        # Its prompt slows the outputs down that are made beside it.
        slowed_s = self._pools[Role.DECODE].prompt_s(request.prompt_tokens) / OUTPUT_TOKENS
        keeping = [
            option
            for option in self._alone(request, case, now_s)
            if option.has_room and option.ttft_s <= target.ttft_s and option.tpot_s + slowed_s <= target.tpot_s
        ]
        return min(keeping, key=lambda option: option.rank, default=None)

    def _best_pair(self, request: RequestShape, workers: Candidates, now_s: float) -> _Option | None:
        """Take the pair with room in which a prompt waits the least and an output goes on the fastest."""
        tokens, context = request.prompt_tokens, self._context
        sending, receiving = self._pools[Role.PREFILL], self._pools[Role.DECODE]

        def prefill_score(worker: WorkerView) -> float:
            return sending.prefill_wait_s(worker, now_s)

        def decode_score(worker: WorkerView) -> float:
            forecast = receiving.decode(worker, tokens)
            return forecast.tpot_s if forecast.has_room else _FULL_S + forecast.tpot_s

        pair = least_pair(workers, prefill_score, decode_score)
        if pair is None:
            return None
        decode = next(w for w in workers.decode if w.record.worker_id == pair[0])
        prefill = next(w for w in workers.prefill if w.record.worker_id == pair[1])
        forecast, prompt_s = receiving.decode(decode, tokens), sending.prompt_s(tokens)
        ttft_s = prefill_score(prefill) + prompt_s
        ttft_s += transfer_s(context.link, tokens, prompt_s) + handover_s(context, decode, forecast)
        return _Option(*pair, "least predicted TTFT", forecast.has_room, ttft_s, forecast.tpot_s)

    def _alone(self, request: RequestShape, case: Alone, now_s: float) -> list[_Option]:
        """Predict the request whole on each of some workers."""
        options = []
        for worker in case.workers:
            pool, tokens = self._pools[worker.record.role], request.prompt_tokens
            forecast = pool.decode(worker, tokens)
            ttft_s = pool.whole_ttft_s(worker, tokens, now_s) + self._context.request_overhead_s
            name = worker.record.worker_id
            options.append(_Option(name, None, case.reason, forecast.has_room, ttft_s, forecast.tpot_s))
        return options


def _least_strained(options: list[_Option], target: ClassTarget) -> _Option:
    """Take the worker that is the least strained in both its parts, each as a share of its target."""
    shares = target if target is not _NO_TARGET else _USUAL_TARGET

    def strain(option: _Option) -> tuple[bool, float, str]:
        return (
            not option.has_room,
            option.ttft_s / shares.ttft_s + option.tpot_s / shares.tpot_s,
            option.decode,
        )

    return min(options, key=strain)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
