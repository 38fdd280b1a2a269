"""Reads vLLM's per-step statistics, whose classes are declared unstable, into StepFigures.

Owns the field names of vLLM's statistics. Must not know workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.step_state import StepFigures, StepState

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.loggers import StatLoggerBase
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


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
                state.observe(_figures(scheduler_stats, iteration_stats), time.monotonic())

        def log_engine_initialized(self) -> None:
            pass

    def make(vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        return StepLogger(vllm_config, engine_index)

    return make


def _figures(stats: SchedulerStats, iteration: IterationStats | None) -> StepFigures:
    return StepFigures(
        num_running=stats.num_running_reqs,
        # 0.24 has no second queue.
        num_waiting=stats.num_waiting_reqs + getattr(stats, "num_skipped_waiting_reqs", 0),
        kv_usage=stats.kv_cache_usage,
        made_tokens=iteration is not None,
    )
