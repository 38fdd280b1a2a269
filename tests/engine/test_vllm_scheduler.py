"""The scheduler tells what its steps computed, and serves on when telling fails."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from core.latency.step import Step
from engine.step_clock import StepClock, TracedStep
from engine.vllm_scheduler import wrap


@dataclass
class Origin:
    """Where a prompt's tokens come from, as vLLM keeps it (PrefillStats)."""

    num_prompt_tokens: int
    num_local_cached_tokens: int = 0
    num_external_cached_tokens: int = 0

    def set(self, prompt: int, local: int, external: int) -> None:
        self.__init__(prompt, local, external)  # type: ignore[misc]


@dataclass
class Request:
    num_computed_tokens: int
    prefill_stats: Origin | None = None


@dataclass
class Scheduler:
    """Schedules what a test put into it, in vLLM's terms."""

    requests: dict[str, Request] = field(default_factory=dict)
    next_output: Any = None
    unfinished: bool = False

    def schedule(self, throttle: bool = False) -> Any:
        return self.next_output

    def update_from_output(self, output: Any, result: Any) -> Any:
        tokens = [SimpleNamespace(new_token_ids=ids) for ids in result]
        return {0: SimpleNamespace(outputs=tokens, scheduler_stats=None)}

    def has_unfinished_requests(self) -> bool:
        return self.unfinished


def output_of(tokens: dict[str, int], new: dict[str, int] | None = None) -> Any:
    """Make vLLM's output of a scheduling: tokens by request, and of new ones the tokens computed before."""
    news = [SimpleNamespace(req_id=name, num_computed_tokens=before) for name, before in (new or {}).items()]
    return SimpleNamespace(num_scheduled_tokens=tokens, scheduled_new_reqs=news)


def wrapped(scheduler: Scheduler) -> list[TracedStep]:
    steps: list[TracedStep] = []
    wrap(scheduler, StepClock(overlapping=False), lambda outputs, traced: steps.append(traced))
    return steps


def test_a_part_of_a_prompt_counts_in_the_step_that_computes_it() -> None:
    # The count of a request is that after scheduling.
    scheduler = Scheduler({"long": Request(512), "chat": Request(65)})
    steps = wrapped(scheduler)
    scheduler.next_output = output_of({"long": 256, "chat": 1})
    scheduler.update_from_output(scheduler.schedule(False), [[7]])
    (step,) = steps
    assert step.step == Step(256, 1, 256 * (256 + 128.0), 1, 65)
    assert step.seconds > 0


def test_an_empty_step_is_not_told() -> None:
    scheduler = Scheduler()
    steps = wrapped(scheduler)
    scheduler.next_output = output_of({})
    scheduler.update_from_output(scheduler.schedule(), [])
    assert steps == []


@pytest.mark.parametrize(
    ("computed", "origin", "expected"),
    [
        (99, Origin(100, 32, 68), Origin(100, 32, 68)),  # all came; the last token is recomputed
        (32, Origin(100, 32, 68), Origin(100, 32, 0)),  # nothing came
        (64, Origin(100, 32, 68), Origin(100, 32, 32)),  # one block did
        (64, Origin(100, 64, 0), Origin(100, 64, 0)),  # none was to come
    ],
)
def test_only_what_was_received_counts_as_received(computed: int, origin: Origin, expected: Origin) -> None:
    scheduler = Scheduler({"r": Request(100, origin)})
    wrapped(scheduler)
    scheduler.next_output = output_of({"r": 100 - computed}, new={"r": computed})
    scheduler.schedule()
    assert origin == expected


def test_a_step_that_cannot_be_measured_is_served(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler()  # it does not know the request
    steps = wrapped(scheduler)
    scheduler.next_output = output = output_of({"r": 5})
    with caplog.at_level(logging.ERROR):
        assert scheduler.schedule() is output
        outputs = scheduler.update_from_output(output, [[3]])
    assert outputs[0].outputs[0].new_token_ids == [3]
    assert steps == []
    assert "a step was not measured" in caplog.text
