"""A system for the benchmark's own tests that says it moved blocks and moves none."""

from __future__ import annotations

import time

from bench.kv.cache import Bytes, Job
from bench.kv.side import Side, Span


class _Idle:
    address = ""

    def meet(self, address: str) -> None:
        pass

    def prepare(self, job: Job) -> None:
        pass

    def run(self, job: Job) -> Span:
        return Span(time.monotonic(), time.monotonic())

    def close(self) -> None:
        pass


def sender(cache: Bytes, options: dict[str, str]) -> Side:
    return _Idle()


def receiver(cache: Bytes, options: dict[str, str]) -> Side:
    return _Idle()
