"""The simulator's say in sizes: candidates near an estimate are simulated, beside the decisions or within them.

Owns what is simulated when, and which answer is in force meanwhile: the latest to the same question. Where the executor
works beside its caller a decision takes the milliseconds of its estimate, and what a check corrects comes with a later
one; where it works at once (the simulated fleet, tests) equal observations give equal decisions. Must not decide.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final, Generic, ParamSpec, TypeVar

from core.control.actions import PoolSizes
from core.control.capacity import ServiceModel
from core.control.demand import Demand
from core.control.sizing import Bounds, Evaluator, Simulated, refined_need, refined_split, simulated_of

PATIENCE_S: Final = 10.0  # a split waits so long for its check, then it is made by the estimate alone

_P = ParamSpec("_P")
_K = TypeVar("_K")
_T = TypeVar("_T")


class AtOnce(Executor):
    """Runs what it is given before `submit` returns."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run `fn`; what it raises comes from here."""
        done: Future[_T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """A split that the simulation has corrected, and the shares of requests that it and the present one keep."""

    sizes: PoolSizes
    kept: float | None  # None: not simulated
    kept_now: float | None


@dataclass(frozen=True, slots=True)
class _Answer(Generic[_T]):
    found: _T
    simulated: int  # sizes


class _Asked(Generic[_K, _T]):
    """The latest answer to one kind of question, and the question that is under way."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._open: tuple[_K, float, Future[_Answer[_T]]] | None = None  # with the time when it was asked
        self._known: tuple[_K, float, _Answer[_T]] | None = None

    def answer(self, key: _K, question: Callable[[], _Answer[_T]], now_s: float, fresh_s: float) -> _Answer[_T] | None:
        """Return the answer to `key`, asked for again once it is `fresh_s` old; None while there is none."""
        self._take()
        known = self._known
        is_fresh = known is not None and known[0] == key and now_s - known[1] < fresh_s
        if not is_fresh and self._open is None:
            self._open = (key, now_s, self._executor.submit(question))
            self._take()
        return self._known[2] if self._known is not None and self._known[0] == key else None

    def forget(self) -> None:
        """Ask anew the next time."""
        self._known = None

    def _take(self) -> None:
        if self._open is not None and self._open[2].done():
            key, asked_s, future = self._open
            self._open = None
            self._known = (key, asked_s, future.result())


class Checks:
    """Asks an evaluator; a stateful accountant, called from one thread at a time."""

    def __init__(self, evaluator: Evaluator, executor: Executor, *, budget: int, every_s: float) -> None:
        """Simulate at most `budget` sizes for one answer, and anew after `every_s` while the question is the same."""
        self._evaluator, self._budget, self._every_s = evaluator, budget, every_s
        self._needs: _Asked[PoolSizes, PoolSizes] = _Asked(executor)
        self._splits: _Asked[tuple[PoolSizes, PoolSizes], SplitCheck] = _Asked(executor)
        self._waits: tuple[PoolSizes, float] | None = None  # for the check of this split, since when
        self.simulated = 0  # sizes that the latest answer rests on

    def need(self, model: ServiceModel, demand: Demand, estimate: PoolSizes, bounds: Bounds, now_s: float) -> PoolSizes:
        """Correct what is needed; the estimate itself until it was checked."""

        def question() -> _Answer[PoolSizes]:
            simulated = self._simulated(model, demand)
            return _Answer(refined_need(estimate, bounds, simulated), simulated.count)

        answer = self._needs.answer(estimate, question, now_s, self._every_s)
        if answer is not None and not bounds.allow(answer.found):  # the bounds are others now
            self._needs.forget()
            answer = self._needs.answer(estimate, question, now_s, self._every_s)
        if answer is None or not bounds.allow(answer.found):
            return estimate
        self.simulated = answer.simulated
        return answer.found

    def split(
        self, model: ServiceModel, demand: Demand, split: PoolSizes, now: PoolSizes, bounds: Bounds, now_s: float
    ) -> SplitCheck | None:
        """Correct a split of all workers there may be; None: its check is under way and worth waiting for."""

        def question() -> _Answer[SplitCheck]:
            simulated = self._simulated(model, demand)
            best = refined_split(split, bounds, simulated)
            after, before = simulated.score(best), simulated.score(now)
            found = SplitCheck(best, None if after is None else after[1], None if before is None else before[1])
            return _Answer(found, simulated.count)

        answer = self._splits.answer((split, now), question, now_s, self._every_s)
        if answer is not None:
            self._waits = None
            self.simulated = answer.simulated
            return answer.found
        if self._waits is None or self._waits[0] != split:
            self._waits = (split, now_s)
        return None if now_s - self._waits[1] < PATIENCE_S else SplitCheck(split, None, None)

    def _simulated(self, model: ServiceModel, demand: Demand) -> Simulated:
        return simulated_of(self._evaluator, model, demand, self._budget)
