"""Both ends of a benchmarked system in one process, moving one small job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bench.kv.cache import Job, blocks_for, empty_cache, full_cache, wrong_blocks
from bench.kv.side import RECEIVER, SENDER, Span, make_side

TOKENS = 48
_WAIT_S = 30.0


def move_once(
    module: str, options: dict[str, str], *, in_turn: bool = False, job: Job | None = None
) -> tuple[Span, Span, int]:
    """Move a job; return both ends' spans and how many blocks arrived wrong."""
    job = job or Job(1, TOKENS, blocks_for(TOKENS))
    target = empty_cache(job.cache_blocks)
    sides = [
        make_side(module, SENDER, options, full_cache(job.cache_blocks)),
        make_side(module, RECEIVER, options, target),
    ]
    try:
        with ThreadPoolExecutor(2) as pool:
            addresses = [side.address for side in sides]
            meeting = [
                pool.submit(side.meet, address) for side, address in zip(sides, reversed(addresses), strict=True)
            ]
            for each in meeting:
                each.result(_WAIT_S)
            for side in reversed(sides):
                side.prepare(job)
            if in_turn:
                spans = [side.run(job) for side in sides]
            else:
                running = [pool.submit(side.run, job) for side in sides]
                spans = [each.result(_WAIT_S) for each in running]
    finally:
        for side in sides:
            side.close()
    return spans[0], spans[1], wrong_blocks(target, job)
