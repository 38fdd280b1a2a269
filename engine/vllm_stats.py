"""Reads vLLM's per-step statistics, whose classes are declared unstable, into StepFigures.

Owns the field names of vLLM's statistics, at both ends: the engine core adds to a step's statistics what the step
computed, and the front reads it. Must not know workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from engine.step_state import StepFigures, StepReport, StepState

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.loggers import StatLoggerBase
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


def attach_step(outputs: Mapping[int, EngineCoreOutputs], seconds: float, prompt_tokens: int) -> None:
    """Add what a step computed to its statistics, which vLLM gives to one of the fronts; called in the engine core.

    vLLM 0.32 has a place for this, which it fills only for its log: `prompt tokens` of its own statistics are those of
    prompts that came to their end, so a step that computed a part of a prompt counts nothing, and the last one all.
    """
    try:
        from vllm.v1.metrics.stats import SchedulerIterationDetails
    except ImportError:  # vLLM before 0.32
        return
    seqs = sum(bool(output.new_token_ids) for each in outputs.values() for output in each.outputs)
    for each in outputs.values():
        if each.scheduler_stats is not None:
            each.scheduler_stats.iteration_details = SchedulerIterationDetails(
                iteration_index=0,
                num_ctx_requests=0,
                num_ctx_tokens=prompt_tokens,
                num_generation_requests=seqs,
                num_generation_tokens=0,
                elapsed_ms=seconds * 1e3,
            )


def stat_logger_factory(state: StepState) -> Callable[[VllmConfig, int], StatLoggerBase]:
    """Return what AsyncLLM takes in `stat_loggers`: a maker of a logger that feeds `state`."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class StepLogger(StatLoggerBase):
        """Passes the figures of each step on."""

        def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
            pass

        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            mm_cache_stats: object = None,
            engine_idx: int = 0,
        ) -> None:
            if scheduler_stats is not None:
                if carried := getattr(scheduler_stats, "kv_connector_stats", None):
                    _take_quarantine(state, carried)
                state.observe(figures_of(scheduler_stats, made_tokens=iteration_stats is not None), time.monotonic())

        def log_engine_initialized(self) -> None:
            pass

    def make(vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        return StepLogger(vllm_config, engine_index)

    return make


def _take_quarantine(state: StepState, carried: Mapping[str, Any]) -> None:
    from kv_transfer.quarantine import read_quarantined

    quarantined = read_quarantined(carried)
    if quarantined is not None:
        state.set_quarantined(quarantined)


def figures_of(stats: SchedulerStats, *, made_tokens: bool) -> StepFigures:
    """Read what vLLM says after a step."""
    details = getattr(stats, "iteration_details", None)
    report = None
    if details is not None:
        report = StepReport(details.elapsed_ms / 1e3, details.num_ctx_tokens, details.num_generation_requests)
    return StepFigures(
        num_running=stats.num_running_reqs,
        # 0.24 has no second queue.
        num_waiting=stats.num_waiting_reqs + getattr(stats, "num_skipped_waiting_reqs", 0),
        kv_usage=stats.kv_cache_usage,
        made_tokens=made_tokens,
        report=report,
    )
