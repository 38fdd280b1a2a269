"""What each step of a vLLM engine computed and how long it took, written to a file by the engine core itself.

Owns the reading of vLLM's scheduler output into core.latency's Step, the definition of a step's time, and the file.
`flags` make an engine write; `read_trace` reads. Must not know why anybody wants to know.

A step lasts from the end of the step before it, if that left work to do, else from its own scheduling, to the moment
its tokens are known. So the times of the steps of a busy engine add up to the wall clock, whether vLLM schedules
ahead (on GPUs) or not. With pipeline stages several steps are under way at once: there each counts from its own
scheduling.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from core.latency.step import Step, attention_pairs

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput

_FACTORY = "engine.step_trace.traced_scheduler"
_KEY = "baton_step_trace"  # of vLLM's additional_config, which is there for plug-ins


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One step; times are of the machine's monotonic clock."""

    began_s: float
    ended_s: float
    step: Step

    @property
    def seconds(self) -> float:
        """How long the step took."""
        return self.ended_s - self.began_s


def engine_args(path: Path) -> dict[str, str]:
    """Return the engine arguments that make every engine core write its steps to `path`, or below it if a folder."""
    return {"scheduler-cls": _FACTORY, "additional-config": json.dumps({_KEY: str(path)})}


def flags(path: Path) -> tuple[str, ...]:
    """Return `engine_args` as flags of `vllm serve`."""
    return tuple(part for name, value in engine_args(path).items() for part in (f"--{name}", value))


def read_trace(file: Path) -> list[TracedStep]:
    """Read what an engine wrote so far, an unfinished last line aside; nothing if there is no file yet."""
    return list(_read(file))


def _read(file: Path) -> Iterator[TracedStep]:
    if not file.exists():
        return
    *lines, _ = file.read_text().split("\n")
    for line in lines:
        began_s, ended_s, *fields = json.loads(line)
        yield TracedStep(began_s, ended_s, Step(*fields))


class StepLog:
    """Turns the scheduler's beginnings and ends into TracedSteps and writes them."""

    def __init__(self, out: IO[str], *, overlapping: bool) -> None:
        self._out = out
        self._overlapping = overlapping  # several steps are under way at once
        self._open: dict[int, tuple[float, Step]] = {}  # all and only steps scheduled and not computed, by identity
        self._busy_since_s: float | None = None  # end of the latest step, if it left work to do

    def scheduled(self, key: int, step: Step, now_s: float) -> None:
        """Take a step that was scheduled from `now_s` on; one that computes nothing is no step."""
        if step.prefill_tokens or step.decode_seqs:
            self._open[key] = (now_s, step)
        elif not self._open:
            self._busy_since_s = None

    def computed(self, key: int, now_s: float, *, work_left: bool) -> None:
        """Take the end of the step `key`, and write it."""
        if key not in self._open:
            return
        began_s, step = self._open.pop(key)
        if self._busy_since_s is not None and not self._overlapping:
            began_s = self._busy_since_s
        self._busy_since_s = now_s if work_left else None
        self._out.write(json.dumps([round(began_s, 6), round(now_s, 6), *astuple(step)]) + "\n")
        self._out.flush()


def step_of(pieces: Iterator[tuple[int, int]]) -> Step:
    """Add up the pieces of a step: for each sequence, tokens computed in it and tokens before them.

    One token behind others is decoding, also the last token of a prompt whose KV came from elsewhere.
    """
    tokens = prompts = decoding = context = 0
    pairs = 0.0
    for new, before in pieces:
        if new == 1 and before > 0:
            decoding += 1
            context += before + 1
        else:
            tokens += new
            prompts += 1
            pairs += attention_pairs(new, before)
    return Step(tokens, prompts, pairs, decoding, context)


def traced_scheduler(*, vllm_config: VllmConfig, **settings: Any) -> Any:
    """Make the scheduler that vLLM would have made, and have it write its steps; called by vLLM's engine core.

    vLLM takes the name of a class and calls what it finds there (0.32, v1/engine/core.py), so a function does, and
    asynchronous scheduling stays as it was.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    make = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    scheduler = make(vllm_config=vllm_config, **settings)
    path = Path(vllm_config.additional_config[_KEY])
    out = open(path / f"{os.getpid()}.steps" if path.is_dir() else path, "a")  # noqa: SIM115  # open as long as the engine core lives
    log = StepLog(out, overlapping=vllm_config.parallel_config.pipeline_parallel_size > 1)
    schedule, update = scheduler.schedule, scheduler.update_from_output

    def traced_schedule(*args: Any) -> Any:
        began_s = time.monotonic()
        output = schedule(*args)
        log.scheduled(id(output), step_of(_pieces(scheduler, output)), began_s)
        return output

    def traced_update(output: Any, result: Any) -> Any:
        # Once a request is finished the scheduler forgets it; whether work is left is known only then.
        outputs = update(output, result)
        log.computed(id(output), time.monotonic(), work_left=bool(scheduler.has_unfinished_requests()))
        return outputs

    scheduler.schedule, scheduler.update_from_output = traced_schedule, traced_update
    return scheduler


def _pieces(scheduler: Any, output: SchedulerOutput) -> Iterator[tuple[int, int]]:
    for request_id, new in output.num_scheduled_tokens.items():
        # schedule() has added the step's tokens to the count already.
        yield new, scheduler.requests[request_id].num_computed_tokens - new
