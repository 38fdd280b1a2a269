"""The book of promises, and what it is for: of clients that come back at the time they were told, nine in ten at least
are admitted and keep their SLO.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import insort
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy.promised_work import PromisedWork
from core.policy.registry import policy_named
from core.types import ClusterView, HeldWork, Hold, Rejection, RequestShape, Role, Route, WorkerView
from tests.support.contexts import COST, context
from tests.support.views import worker

TTFT_S = 0.5  # of tests.support.contexts.context
MAX_NUM_BATCHED_TOKENS = 4096
FIRST_STEP_S = COST.decode_s(1, 0)


def test_what_is_due_is_told_in_order_until_it_is_used_or_over() -> None:
    book = PromisedWork(window_s=2.0)
    assert book.work(0.0) == HeldWork()
    book.note("b", 3.0, 200)
    book.note("a", 1.0, 100)
    assert book.work(0.0) == HeldWork((1.0, 3.0), (0, 100, 300))
    assert book.work(1.0) is book.work(2.9)
    assert book.strike("a")
    assert not book.strike("a")
    book.note("b", 4.0, 50)
    assert book.work(3.1) == HeldWork((4.0,), (0, 50))
    assert book.work(6.1) == HeldWork()


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 10), st.integers(1, 100)), max_size=20))
def test_each_name_counts_once(notes: list[tuple[str, float, int]]) -> None:
    book = PromisedWork(window_s=100.0, max_items=3)
    for name, due_s, tokens in notes:
        book.note(name, due_s, tokens)
        work = book.work(0.0)
        assert len(work.keys_s) == len(work.tokens_before) - 1 <= 3
        assert list(work.keys_s) == sorted(work.keys_s)


@dataclass
class Client:
    """One request, perhaps on its second try."""

    name: str
    tokens: int
    arrived_s: float
    is_back: bool = False
    ttft_s: float | None = None  # None: not served


@dataclass
class Step:
    """Prompts that are computed together."""

    begin_s: float
    clients: list[Client] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(client.tokens for client in self.clients)

    @property
    def end_s(self) -> float:
        return self.begin_s + COST.prefill_s(self.tokens)


class Prefill:
    """A worker that computes what waits in as few steps as it can."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._steps: list[Step] = []  # all and only those that have not ended, in order; only the first has begun

    def view(self, now_s: float) -> WorkerView:
        while self._steps and self._steps[0].end_s <= now_s:
            del self._steps[0]
        if not self._steps:
            return worker(self.name, Role.PREFILL)
        prompts = sum(len(step.clients) for step in self._steps)
        tokens = sum(step.tokens for step in self._steps)
        since_s = self._steps[0].begin_s
        return worker(self.name, Role.PREFILL, requests=prompts, tokens=tokens, prompts=prompts, since_s=since_s)

    def take(self, client: Client, now_s: float) -> float:
        """Queue a prompt; return when it will be computed, if no other comes."""
        last = self._steps[-1] if self._steps else Step(-math.inf)
        if last.begin_s <= now_s or last.tokens + client.tokens > MAX_NUM_BATCHED_TOKENS:
            last = Step(max(now_s, last.end_s))
            self._steps.append(last)
        last.clients.append(client)
        for each in last.clients:
            each.ttft_s = last.end_s + FIRST_STEP_S - each.arrived_s
        return last.end_s


class Loop:
    """Clients, a router that holds, and two prefill workers with a decode worker that is never short of anything."""

    def __init__(self, clients: list[Client], *, promises: bool) -> None:
        self.clients = clients
        self.book = PromisedWork() if promises else None
        self._policy = policy_named(
            "slo-aware", context(may_hold=True, admit_by_ttft=True, admit_by_tpot=True, whole_below_tokens=1)
        )
        self._workers = [Prefill("p0"), Prefill("p1")]
        self._held: list[tuple[float, int, Client]] = []
        self._number = count()
        self._wake_s = -math.inf
        self._events: list[tuple[float, int, Client | None]] = []
        for client in clients:
            self._at(client.arrived_s, client)

    def run(self) -> None:
        while self._events:
            now_s, _, client = heapq.heappop(self._events)
            while self._held:
                held = self._held.pop(0)[2]
                if not self._ask(held, now_s):
                    break  # the first of the queue still waits for room, and so do all behind it
            if client is not None:
                self._ask(client, now_s)

    def _at(self, when_s: float, client: Client | None) -> None:
        heapq.heappush(self._events, (when_s, next(self._number), client))

    def _wake(self, when_s: float, now_s: float) -> None:
        """Look at the queue again then, if not before."""
        if self._wake_s <= now_s or when_s < self._wake_s:
            self._wake_s = when_s
            self._at(when_s, None)

    def _ask(self, client: Client, now_s: float) -> bool:
        """Ask the policy; False when the request is held."""
        reserved = client.is_back and self.book is not None
        if self.book is not None:
            self.book.strike(client.name)
        shape = RequestShape(
            client.name, client.tokens, 16, "interactive",
            waited_s=now_s - client.arrived_s, is_reserved=reserved,
        )  # fmt: skip
        tokens = [0]
        for entry in self._held:
            tokens.append(tokens[-1] + entry[2].tokens)
        views = [worker("d0", Role.DECODE), *(each.view(now_s) for each in self._workers)]
        promised = HeldWork() if self.book is None else self.book.work(now_s)
        held = HeldWork(tuple(entry[0] for entry in self._held), tuple(tokens))
        decision = self._policy.decide(shape, ClusterView(tuple(views), held, promised), now_s)
        if isinstance(decision, Hold):
            insort(self._held, (decision.key_s, next(self._number), client))
            self._wake(decision.until_s, now_s)
        elif isinstance(decision, Route):
            target = next(each for each in self._workers if each.name == decision.prefill)
            self._at(target.take(client, now_s), None)
        else:
            self._refused(client, decision, now_s)
        return not isinstance(decision, Hold)

    def _refused(self, client: Client, refusal: Rejection, now_s: float) -> None:
        if client.is_back or refusal.earliest_s is None:
            return
        due_s = now_s + refusal.earliest_s
        again = replace(client, name=client.name + "'", arrived_s=due_s, is_back=True)
        self.clients.append(again)
        self._at(due_s, again)
        if self.book is not None:
            self.book.note(again.name, due_s, again.tokens)


def arrivals(load: float, seconds: float, *, seed: int, quiet_s: float) -> list[Client]:
    """Make clients at a multiple of what two workers carry, and at half of it from then on."""
    chance, clients, now_s = random.Random(seed), [], 0.0
    mean_s = COST.prefill_s(700) / 2
    while now_s < seconds + quiet_s:
        now_s += chance.expovariate((load if now_s < seconds else 0.5) / mean_s)
        clients.append(Client(f"r{len(clients)}", chance.randrange(200, 1200), now_s))
    return clients


def kept(clients: list[Client], *, back: bool) -> float:
    of = [client for client in clients if client.is_back is back]
    return sum(client.ttft_s is not None and client.ttft_s <= TTFT_S + 1e-6 for client in of) / max(1, len(of))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [1.5, 3.0])
def test_who_comes_back_in_time_is_served_in_time(load: float, seed: int) -> None:
    loop = Loop(arrivals(load, 20.0, seed=seed, quiet_s=60.0), promises=True)
    loop.run()
    assert sum(client.is_back for client in loop.clients) > 50
    assert kept(loop.clients, back=True) >= 0.9
    admitted = [client for client in loop.clients if client.ttft_s is not None]
    in_time = sum((client.ttft_s or 0.0) <= TTFT_S + 1e-6 for client in admitted)
    assert in_time / len(admitted) >= 0.97


@pytest.mark.parametrize("promises", [True, False])
def test_overload_does_not_cost_goodput(promises: bool) -> None:
    def goodput(load: float) -> float:
        loop = Loop(arrivals(load, 30.0, seed=1, quiet_s=0.0), promises=promises)
        loop.run()
        kept = [c for c in loop.clients if c.arrived_s < 30.0 and c.ttft_s is not None and c.ttft_s <= TTFT_S]
        return len(kept) / 30.0

    assert goodput(1.5) >= 0.95 * goodput(1.0)
    assert goodput(3.0) >= 0.95 * goodput(1.0)
