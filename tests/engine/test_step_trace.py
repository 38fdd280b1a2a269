"""What an engine core writes of its steps is what is read."""

from __future__ import annotations

import json
from pathlib import Path

from core.latency.step import Step
from engine.step_clock import TracedStep
from engine.step_trace import flags, read_trace, write_step


def test_what_is_written_is_read(tmp_path: Path) -> None:
    steps = [TracedStep(1.0, 1.25, Step(16, 1, 128.0)), TracedStep(1.25, 1.5, Step(decode_seqs=2, context_tokens=90))]
    with (tmp_path / "steps").open("w") as out:
        for step in steps:
            write_step(out, step)
        assert read_trace(tmp_path / "steps") == steps


def test_a_line_still_being_written_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "steps"
    assert read_trace(file) == []
    file.write_text("[1.0,2.0,16,1,128.0,0,0]\n[2.0,3.")
    assert read_trace(file) == [TracedStep(1.0, 2.0, Step(16, 1, 128.0))]


def test_the_flags_name_the_file(tmp_path: Path) -> None:
    given_flags = flags(tmp_path / "steps")
    assert str(tmp_path / "steps") in json.loads(given_flags[given_flags.index("--additional-config") + 1]).values()
