"""One process of a pair: it takes commands on its standard input and answers on its standard output.

Owns the commands. Must not know any system; what a system does is a module that `bench.kv.systems` names.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from bench.kv.cache import Bytes, Job, empty_cache, full_cache, wipe, wrong_blocks

SENDER: Final = "sender"
RECEIVER: Final = "receiver"


@dataclass(frozen=True, slots=True)
class Span:
    """When one side began, and when it knew all to be in place; on the machine's monotonic clock, seconds."""

    began_s: float | None = None
    ended_s: float | None = None


class Side(Protocol):
    """One end of a system."""

    address: str  # what the other end must know

    def meet(self, address: str) -> None:
        """Connect to the other end; called on both sides."""
        ...

    def prepare(self, job: Job) -> None:
        """Do what is done before a prompt is computed; not timed."""
        ...

    def run(self, job: Job) -> Span:
        """Move the job; called on both sides at once."""
        ...

    def close(self) -> None:
        """Give back everything."""
        ...


def make_side(module: str, role: str, options: dict[str, str], cache: Bytes) -> Side:
    """Build one end of the system that `module` implements by its functions `sender` and `receiver`."""
    factory = getattr(importlib.import_module(module), role)
    side: Side = factory(cache, options)
    return side


def main() -> None:
    """Build the side that the first line describes, then obey until the input ends."""
    setup = json.loads(sys.stdin.readline())
    role = setup["role"]
    cache = full_cache(setup["cache_blocks"]) if role == SENDER else empty_cache(setup["cache_blocks"])
    side = make_side(setup["module"], role, setup["options"], cache)
    _answer({"address": side.address})
    try:
        for line in sys.stdin:
            _answer(_obey(side, cache, json.loads(line)))
    finally:
        side.close()


def _obey(side: Side, cache: Bytes, command: dict[str, Any]) -> dict[str, object]:
    verb = command.pop("verb")
    if verb == "meet":
        side.meet(command["address"])
        return {}
    if verb == "cpu":
        times = os.times()
        return {"cpu_s": time.process_time() + times.children_user + times.children_system}
    job = Job(**command)
    if verb == "prepare":
        side.prepare(job)
    elif verb == "run":
        return asdict(side.run(job))
    elif verb == "wipe":
        wipe(cache, job)
    elif verb == "check":
        return {"wrong": wrong_blocks(cache, job)}
    return {}


def _answer(reply: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
