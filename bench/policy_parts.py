"""What the router's stateful parts cost: `python -m bench.policy_parts [--requests N]`.

Owns the settings: prefix index, slack queue, fairness and reservations at the sizes of a large cluster, and a soak of
the index with the memory of this process. CPU time of this process only. Must not know how the parts work inside.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from core.policy.fairness import TenantService
from core.policy.prefix_index import PIECE_ENDS, PrefixIndex
from core.policy.reservations import Reservations
from core.policy.slack_queue import QueueRules, SlackQueue, Waiting

_INDEX_BYTES: Final = 64 << 20  # router.prefix_index_mb
_KV_BLOCKS, _BLOCK_SIZE = 25_000, 16  # 400,000 tokens: an 8B model on a GPU of 80 GB
_PROMPTS: Final = (("400 B", 100), ("16 kB", 4_000))  # tokens of 4 bytes
_WORKERS: Final = (2, 128)
_FILLING: Final = 25_000  # prompts of 20 pieces: an index of 64 MiB and 128 workers is full
_REPEATS: Final = 100
_MASK: Final = (1 << 64) - 1


def cpu_us(action: Callable[[], object], *, calls: int) -> float:
    """Return the microseconds of CPU time of one call, the best of many short runs: others share the caches."""
    best = float("inf")
    for _ in range(_REPEATS):
        began_s = time.process_time()
        for _ in range(calls):
            action()
        best = min(best, time.process_time() - began_s)
    return best / calls * 1e6


def index_of(num_workers: int) -> tuple[PrefixIndex, list[str]]:
    """Return an empty index of a cluster."""
    index, names = PrefixIndex(_INDEX_BYTES), [f"worker-{number:03}" for number in range(num_workers)]
    for name in names:
        index.join(name, epoch=1, num_kv_blocks=_KV_BLOCKS, block_size=_BLOCK_SIZE)
    return index, names


def index_costs() -> list[str]:
    """Time lookups and records: of prompts never seen, of those just seen, and of a prompt that every worker has."""
    lines = ["prefix index, us per lookup and record    new    seen    system prompt on all, rest on one"]
    for num_workers in _WORKERS:
        index, names = index_of(num_workers)
        rng = random.Random(0)
        for number in range(_FILLING):
            index.record(names[number % num_workers], _random_pieces(rng, 20))
        for label, tokens in _PROMPTS:
            num_pieces = sum(end <= tokens for end in PIECE_ENDS)
            fresh = iter([_random_pieces(rng, num_pieces) for _ in range(50 * _REPEATS)])
            new_us = cpu_us(partial(_route_next, index, names[0], fresh), calls=50)
            seen = _random_pieces(rng, num_pieces)
            seen_us = cpu_us(partial(_route, index, names[1], seen), calls=100)
            for name in names:
                index.record(name, seen[: max(1, num_pieces // 4)])
            shared_us = cpu_us(partial(_route, index, names[1], seen), calls=100)
            lines.append(f"  {num_workers:4} workers, {label:>6}: {new_us:21.2f} {seen_us:7.2f} {shared_us:9.2f}")
    return lines


def _route(index: PrefixIndex, worker_id: str, pieces: tuple[int, ...]) -> None:
    index.lookup(pieces)
    index.record(worker_id, pieces)


def _route_next(index: PrefixIndex, worker_id: str, prompts: Iterator[tuple[int, ...]]) -> None:
    _route(index, worker_id, next(prompts))


def _random_pieces(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.getrandbits(64) for _ in range(count))


def queue_costs(held: int = 1000) -> list[str]:
    """Time what is done to a queue with many items."""
    rng = random.Random(0)
    queue: SlackQueue[int] = SlackQueue(QueueRules(max_items=held))
    for number in range(held - 1):
        queue.push(Waiting(rng.uniform(0, 60), rng.choice((50, 200, 3000)), number), 0.0)

    def push_and_remove() -> None:
        item = Waiting(rng.uniform(0, 60), 200, 0)
        queue.push(item, 0.0)
        queue.remove(item)

    def push_and_take() -> None:
        queue.push(Waiting(rng.uniform(0, 60), rng.choice((50, 200, 3000)), 0), 0.0)
        queue.take(0, 0.0)

    def push_and_describe() -> None:
        push_and_take()
        queue.held()

    timed = (("push, remove", push_and_remove), ("push, take", push_and_take), ("push, take, held", push_and_describe))
    return [f"slack queue of {held}, us"] + [f"  {name:18} {cpu_us(call, calls=50):6.2f}" for name, call in timed]


def other_costs() -> list[str]:
    """Time a tenant's request and a reservation."""
    service = TenantService(prompt_token_s=1e-5, output_token_s=1e-3)
    rng = random.Random(0)
    tenants = [f"tenant-{number}" for number in range(500)]
    for name in tenants:
        service.arrived(name)

    def request() -> None:
        name = rng.choice(tenants)
        service.arrived(name)
        service.over_share_s(name)
        service.charge(name, 1000, 100)
        service.left(name)

    reservations = Reservations("secret", issuer="bench")
    now_s = iter(range(1_000_000))

    def reservation() -> None:
        at_s = float(next(now_s))
        made = reservations.issue("chat", "t", earliest_s=at_s, rate_per_s=100, now_s=at_s)
        assert made is not None
        assert reservations.redeem(made.token, "chat", "t", at_s)

    return [
        f"fairness, 500 tenants: {cpu_us(request, calls=100):.2f} us a request",
        f"reservation issued and redeemed: {cpu_us(reservation, calls=50):.2f} us",
    ]


def soak(num_requests: int, out: Callable[[str], object], *, lines: int = 20) -> None:
    """Send requests of conversations through an index of 128 workers, some of which restart; print memory as it goes.

    A conversation begins with one of 50 system prompts and goes on for some turns, mostly where it was; the worker
    reports what it had. About one request in ten takes up a conversation that is long over.
    """
    index, names = index_of(128)
    rng = random.Random(0)
    open_chats = [_chat(rng, number) for number in range(5_000)]
    epoch, hits, began_s = 1, 0, time.process_time()
    out(f"soak: {num_requests:,} requests, 128 workers, index of {_INDEX_BYTES >> 20} MiB\n")
    for number in range(num_requests):
        place = int(rng.random() * 5_000)
        pieces = open_chats[place]
        found = index.lookup(pieces)
        hits += bool(found)
        at = max(found, key=lambda pair: pair[1]) if found else (names[number & 127], 0)
        worker_id = at[0] if rng.random() < 0.9 else names[number & 127]
        believed = next((tokens for name, tokens in found if name == worker_id), 0)
        index.record(worker_id, pieces)
        tokens = PIECE_ENDS[len(pieces) - 1] + 40
        cached = believed if rng.random() < 0.9 else believed // 2
        index.correct(
            worker_id,
            pieces,
            prompt_tokens=tokens,
            cached_tokens=cached,
            believed_tokens=believed,
            num_bytes=4 * tokens,
        )
        grown = (*pieces, *_next_pieces(rng, pieces[-1], 3))
        open_chats[place] = grown if len(grown) < 40 and rng.random() < 0.7 else _chat(rng, number)
        if number % 50_000 == 49_999:
            epoch += 1
            index.join(names[epoch & 127], epoch=epoch, num_kv_blocks=_KV_BLOCKS, block_size=_BLOCK_SIZE)
        if (number + 1) % max(1, num_requests // lines) == 0:
            used_s = time.process_time() - began_s
            out(
                f"  {number + 1:>11,} requests  {rss_mb():7.1f} MiB  {index.num_pieces:8,} pieces  "
                f"{hits / (number + 1):5.1%} hits  {used_s / (number + 1) * 1e6:5.1f} us a request, driver included\n"
            )


def _chat(rng: random.Random, number: int) -> tuple[int, ...]:
    system = _next_pieces(random.Random(number % 50), number % 50, 6)
    return (*system, *_next_pieces(rng, number, 2))


def _next_pieces(rng: random.Random, last: int, count: int) -> tuple[int, ...]:
    pieces = []
    for _ in range(count):
        last = (last * 0x9E3779B97F4A7C15 + rng.getrandbits(64)) & _MASK
        pieces.append(last)
    return tuple(pieces)


def rss_mb() -> float:
    """Return the resident memory of this process in MiB; 0 where there is no /proc."""
    try:
        words = Path("/proc/self/status").read_text().split()
    except OSError:
        return 0.0
    return int(words[words.index("VmRSS:") + 1]) / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="bench.policy_parts", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000_000, help="requests of the soak; 0: none")
    chosen = parser.parse_args(arguments)
    gc.disable()  # as in the router
    for part in (index_costs, queue_costs, other_costs):
        sys.stdout.write("\n".join(part()) + "\n")
        sys.stdout.flush()
    if chosen.requests:

        def out(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        soak(chosen.requests, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
