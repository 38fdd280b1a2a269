"""Checks beside the decisions: nobody waits for one, the latest answer stays in force, and a split waits a while."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from core.control.actions import PoolSizes, SizeLimits
from core.control.capacity import ServiceModel
from core.control.checks import PATIENCE_S, AtOnce, Checks, SplitCheck
from core.control.demand import Demand
from core.control.sizing import Bounds
from tests.support.control import demand_of, service

BOUNDS = Bounds(SizeLimits(PoolSizes(1, 1), PoolSizes(8, 8)), 0, 10)
DEMAND = demand_of(10.0, (500, 100))
MODEL = service()
NEED, SPLIT, NOW = PoolSizes(2, 3), PoolSizes(6, 4), PoolSizes(5, 5)


class OneMore:
    """An evaluator that finds the promise kept with `enough` workers, and shares that grow with the prefill pool."""

    def __init__(self, enough: int) -> None:
        self.enough, self.asked = enough, 0

    def attained(self, model: ServiceModel, demand: Demand, sizes: PoolSizes) -> tuple[float, ...]:
        self.asked += 1
        kept = sizes.prefill + sizes.decode >= self.enough
        return (0.95 + sizes.prefill / 1000 if kept else sizes.prefill / 100,)


class Later(Executor):
    """Runs what it was given when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], object]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def run(self) -> None:
        for future, work in self.waiting:
            future.set_result(work())
        self.waiting.clear()


def checks(executor: Executor, enough: int = 6) -> Checks:
    return Checks(OneMore(enough), executor, budget=6, every_s=60.0)


def need(made: Checks, now_s: float, estimate: PoolSizes = NEED, bounds: Bounds = BOUNDS) -> PoolSizes:
    return made.need(MODEL, DEMAND, estimate, bounds, now_s)


def split(made: Checks, now_s: float) -> SplitCheck | None:
    return made.split(MODEL, DEMAND, SPLIT, NOW, BOUNDS, now_s)


def test_at_once_the_estimate_is_corrected_in_the_same_decision() -> None:
    made = checks(AtOnce())
    assert need(made, 0.0) == PoolSizes(3, 3)
    assert made.simulated == 3


def test_beside_the_estimate_holds_until_the_answer_and_that_until_the_next_one() -> None:
    later = Later()
    made = checks(later)
    assert need(made, 0.0) == need(made, 5.0) == NEED
    assert len(later.waiting) == 1
    later.run()
    assert need(made, 10.0) == PoolSizes(3, 3)
    assert not later.waiting
    assert need(made, 61.0) == PoolSizes(3, 3)  # asked anew, the answer before still holds
    assert len(later.waiting) == 1


def test_an_answer_to_another_estimate_or_outside_the_bounds_does_not_hold() -> None:
    later = Later()
    made = checks(later)
    need(made, 0.0)
    later.run()
    assert need(made, 5.0, PoolSizes(1, 1)) == PoolSizes(1, 1)
    later.run()
    need(made, 6.0)
    later.run()
    narrow = Bounds(SizeLimits(PoolSizes(1, 1), PoolSizes(2, 3)), 0, 5)
    assert need(made, 10.0, bounds=narrow) == NEED


def test_a_split_waits_for_its_check_and_after_a_while_no_longer() -> None:
    later = Later()
    made = checks(later)
    assert split(made, 0.0) is None
    assert split(made, PATIENCE_S / 2) is None
    assert split(made, PATIENCE_S) == SplitCheck(SPLIT, None, None)
    later.run()
    found = split(made, PATIENCE_S + 1)
    assert found is not None
    assert found.kept is not None
    assert found.kept_now is not None
    assert found.kept > found.kept_now
    assert found.sizes.prefill >= SPLIT.prefill


def test_the_same_question_is_simulated_again_only_now_and_then() -> None:
    evaluator = OneMore(6)
    made = Checks(evaluator, AtOnce(), budget=6, every_s=60.0)
    need(made, 0.0)
    asked = evaluator.asked
    need(made, 59.0)
    assert evaluator.asked == asked
    need(made, 60.0)
    assert evaluator.asked == 2 * asked
