"""What each step of a vLLM engine computed and how long it took, written to a file by the engine core itself.

Owns the file. `flags` make an engine write; `read_trace` reads. Must not know why anybody wants to know. What a step
and its time are: engine.step_clock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from core.latency.step import Step
from engine.step_clock import TracedStep
from engine.vllm_scheduler import make_scheduler

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_FACTORY = "engine.step_trace.traced_scheduler"
_KEY = "baton_step_trace"  # of vLLM's additional_config, which is there for plug-ins


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


def write_step(out: IO[str], traced: TracedStep) -> None:
    """Write a step so that `read_trace` finds it, at once."""
    out.write(json.dumps([round(traced.began_s, 6), round(traced.ended_s, 6), *astuple(traced.step)]) + "\n")
    out.flush()


def traced_scheduler(*, vllm_config: VllmConfig, **settings: Any) -> Any:
    """Make the scheduler that every worker has, and have it write its steps too; called by vLLM's engine core."""
    path = Path(vllm_config.additional_config[_KEY])
    out = open(path / f"{os.getpid()}.steps" if path.is_dir() else path, "a")  # noqa: SIM115  # open as long as the engine core lives
    return make_scheduler(vllm_config, settings, lambda traced: write_step(out, traced))
