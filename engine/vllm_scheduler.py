"""The scheduler of vLLM's engine core, which says of each step what it computed and how long it took.

It also takes up requests that another engine began, see engine.vllm_resume.

Owns the wrapping of vLLM's scheduler. What it says travels to the front as part of the step's own statistics, see
engine.vllm_stats. Must not know who reads it.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from engine.step_clock import StepClock, TracedStep, step_of
from engine.vllm_stats import attach_step

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput

logger = logging.getLogger(__name__)

FACTORY = "engine.vllm_scheduler.telling_scheduler"  # for vLLM's --scheduler-cls


def telling_scheduler(*, vllm_config: VllmConfig, **settings: Any) -> Any:
    """Make the scheduler that vLLM would have made, and have it tell its steps; called by vLLM's engine core.

    vLLM takes the name of a class and calls what it finds there (0.32, v1/engine/core.py), so a function does, and
    asynchronous scheduling stays as it was.
    """
    return make_scheduler(vllm_config, settings, lambda traced: None)


def make_scheduler(vllm_config: VllmConfig, settings: dict[str, Any], on_step: Callable[[TracedStep], None]) -> Any:
    """Make a scheduler that tells its steps, to `on_step` as well, once the tokens of each are known."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    # vLLM's own figures would replace ours in the statistics, and their time leaves the model out on one process.
    if hasattr(vllm_config.observability_config, "enable_logging_iteration_details"):
        vllm_config.observability_config.enable_logging_iteration_details = False
    is_async = vllm_config.scheduler_config.async_scheduling
    if getattr(vllm_config, "diffusion_config", None) is not None:
        module = importlib.import_module("vllm.v1.core.sched.diffusion_scheduler")
        make = module.DiffusionAsyncScheduler if is_async else module.DiffusionScheduler
    else:
        make = AsyncScheduler if is_async else Scheduler
    scheduler = make(vllm_config=vllm_config, **settings)

    importlib.import_module("engine.vllm_resume").take_up_resumed(scheduler)

    def tell(outputs: Any, traced: TracedStep) -> None:
        attach_step(outputs, traced.seconds, traced.step.prefill_tokens)
        on_step(traced)

    wrap(scheduler, StepClock(overlapping=vllm_config.parallel_config.pipeline_parallel_size > 1), tell)
    return scheduler


def wrap(scheduler: Any, clock: StepClock, tell: Callable[[Any, TracedStep], None]) -> None:
    """Make `scheduler` call `tell` with the outputs of each step before they leave the engine core."""
    schedule, update = scheduler.schedule, scheduler.update_from_output

    def note_scheduled(output: SchedulerOutput, began_s: float) -> None:
        clock.scheduled(id(output), step_of(_pieces(scheduler, output)), began_s)
        _correct_received(scheduler, output)

    def note_computed(output: SchedulerOutput, outputs: Any) -> None:
        # Once a request is finished the scheduler forgets it; whether work is left is known only then.
        traced = clock.computed(id(output), time.monotonic(), work_left=bool(scheduler.has_unfinished_requests()))
        if traced is not None:
            tell(outputs, traced)

    def telling_schedule(*args: Any, **kwargs: Any) -> Any:
        began_s = time.monotonic()
        output = schedule(*args, **kwargs)
        _harmless(note_scheduled, output, began_s)
        return output

    def telling_update(output: Any, result: Any) -> Any:
        outputs = update(output, result)
        _harmless(note_computed, output, outputs)
        return outputs

    scheduler.schedule, scheduler.update_from_output = telling_schedule, telling_update


def _harmless(note: Callable[..., None], *args: object) -> None:
    """Run `note`; the engine core must not die of it."""
    try:
        note(*args)
    except Exception:  # the boundary between measuring and serving
        logger.exception("a step was not measured")


def _pieces(scheduler: Any, output: SchedulerOutput) -> Iterator[tuple[int, int]]:
    for request_id, new in output.num_scheduled_tokens.items():
        # schedule() has added the step's tokens to the count already.
        yield new, scheduler.requests[request_id].num_computed_tokens - new


def _correct_received(scheduler: Any, output: SchedulerOutput) -> None:
    """Count only what was received of a hand-over that broke off.

    vLLM notes the origin of a prompt's tokens when it reserves their blocks. Of a hand-over that fails after a local
    prefix hit it keeps that note, though the rest is computed here.
    """
    for new in output.scheduled_new_reqs:
        stats = getattr(scheduler.requests[new.req_id], "prefill_stats", None)
        if stats is None or not stats.num_external_cached_tokens:
            continue
        if new.num_computed_tokens < stats.num_prompt_tokens - 1:
            local = min(stats.num_local_cached_tokens, new.num_computed_tokens)
            stats.set(stats.num_prompt_tokens, local, new.num_computed_tokens - local)
