"""Limits bind a process that runs, and are taken back."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.chaos.process_limits import few_descriptors, limited, no_disk, no_memory

TRIES = """
import mmap, sys
for line in sys.stdin:
    try:
        if line == "write\\n":
            with open(sys.argv[1], "a") as file:
                file.write("x")
        elif line == "open\\n":
            held = [open("/dev/null") for _ in range(20)]
        else:
            mmap.mmap(-1, 1 << 30).close()
        print("done", flush=True)
    except (OSError, MemoryError) as exc:
        print(type(exc).__name__, flush=True)
"""


class Child:
    """A process that tries what it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process

    def tries(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    command = [sys.executable, "-c", TRIES, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        made = Child(process)
        assert made.tries("write") == "done"
        yield made
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    ("limit", "what", "error"),
    [(no_disk, "write", "OSError"), (few_descriptors, "open", "OSError"), (no_memory, "map", "OSError")],
    ids=["disk", "descriptors", "memory"],
)
def test_a_limited_process_fails_and_goes_on_afterwards(
    child: Child, limit: Callable[[int], tuple[int, int]], what: str, error: str
) -> None:
    kinds = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
    before = [resource.prlimit(child.pid, kind) for kind in kinds]
    assert child.tries(what) == "done"
    with limited([child.pid], limit):
        assert child.tries(what) == error
    assert child.tries(what) == "done"
    assert [resource.prlimit(child.pid, kind) for kind in kinds] == before


def test_processes_that_are_gone_are_left_out(child: Child) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
        with limited([gone.pid, child.pid], no_disk):
            assert child.tries("write") == "OSError"
