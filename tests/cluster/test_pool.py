"""The pool's view holds all and only the workers that are announced, connected and take work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from cluster.membership import StaticMembership
from cluster.pool import WorkerPool
from cluster.session_server import SessionServer
from core.errors import WorkerLost
from core.types import ClusterView, Handover, Leg, Membership, Role, WorkerRecord, WorkerState
from tests.cluster.streaming import HOST, WAIT_S, BaseWorker, HangingWorker, call, hello, read_all, record, tasks_left


class Announcements:
    """A membership that the test changes."""

    def __init__(self) -> None:
        self._current = Membership(0)
        self._changed = asyncio.Event()

    def announce(self, *workers: WorkerRecord) -> None:
        self._current = Membership(self._current.version + 1, workers)
        self._changed.set()

    async def watch(self) -> AsyncIterator[Membership]:
        while True:
            self._changed.clear()
            yield self._current
            await self._changed.wait()


@asynccontextmanager
async def served(worker: BaseWorker, port: int = 0) -> AsyncIterator[tuple[WorkerRecord, SessionServer]]:
    server = SessionServer(worker, host=HOST, port=port, token="t")
    bound = await server.start()
    try:
        yield record(bound, worker.hello.worker_id, worker.hello.role, worker.hello.epoch), server
    finally:
        await server.stop(0)


@asynccontextmanager
async def pool_of(announcements: Announcements) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(announcements, token="t")
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
    assert pool.view() == ClusterView()
    assert [name for name in tasks_left() if not name.startswith("session-") and name != "r"] == []


async def until(pool: WorkerPool, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await pool.wait_changed(0.1)


def ids(pool: WorkerPool) -> list[str]:
    return [view.record.worker_id for view in pool.view().workers]


async def test_view_follows_the_membership_in_order_of_ids() -> None:
    announcements = Announcements()
    prefill = HangingWorker(hello("prefill-0", Role.PREFILL))
    decode = HangingWorker(hello("decode-0"))
    async with served(prefill) as (p, _), served(decode) as (d, _), pool_of(announcements) as pool:
        assert pool.view() == ClusterView()
        announcements.announce(p, d)
        await until(pool, lambda: len(ids(pool)) == 2)
        assert ids(pool) == ["decode-0", "prefill-0"]
        assert [v.hello for v in pool.view().workers] == [decode.hello, prefill.hello]
        announcements.announce(p)
        await until(pool, lambda: ids(pool) == ["prefill-0"])
        assert pool.session("decode-0") is None
        assert pool.session("prefill-0") is not None


async def test_view_is_one_object_until_something_changes() -> None:
    announcements = Announcements()
    async with served(HangingWorker()) as (d, _), pool_of(announcements) as pool:
        announcements.announce(d)
        await until(pool, lambda: ids(pool) == ["decode-0"])
        view = pool.view()
        assert pool.view() is view
        session = pool.session("decode-0")
        assert session is not None
        reply = session.submit(Leg.WHOLE, call(), None, prompt_tokens=70)
        (worker,) = pool.view().workers
        assert (worker.inflight_requests, worker.inflight_prompt_tokens) == (1, 70)
        await reply.read()
        (worker,) = pool.view().workers
        assert (worker.inflight_requests, worker.inflight_prompt_tokens) == (1, 0)
        reply.abort()
        (worker,) = pool.view().workers
        assert (worker.inflight_requests, worker.inflight_prompt_tokens) == (0, 0)


async def test_worker_that_drains_leaves_the_view_and_keeps_its_calls() -> None:
    announcements = Announcements()
    worker = HangingWorker()
    async with served(worker) as (d, _), pool_of(announcements) as pool:
        announcements.announce(d)
        await until(pool, lambda: ids(pool) == ["decode-0"])
        session = pool.session("decode-0")
        assert session is not None
        reply = session.submit(Leg.WHOLE, call(), None)
        await reply.read()
        worker.end_step(WorkerState(draining=True))
        await until(pool, lambda: ids(pool) == [])
        assert (session.alive, worker.running) == (True, 1)


async def test_calls_outlive_the_announcement_of_their_worker() -> None:
    announcements = Announcements()
    worker = HangingWorker()
    async with served(worker) as (d, server), pool_of(announcements) as pool:
        announcements.announce(d)
        await until(pool, lambda: ids(pool) == ["decode-0"])
        session = pool.session("decode-0")
        assert session is not None
        reply = session.submit(Leg.WHOLE, call(), None)
        await reply.read()
        announcements.announce()
        await until(pool, lambda: ids(pool) == [])
        assert (session.alive, server.num_calls) == (True, 1)
        reply.abort()
        async with asyncio.timeout(WAIT_S):
            await session.lost.wait()
            await worker.idle.wait()


async def test_lost_worker_comes_back_by_itself() -> None:
    announcements = Announcements()
    async with pool_of(announcements) as pool:
        async with served(HangingWorker()) as (d, _):
            announcements.announce(d)
            await until(pool, lambda: ids(pool) == ["decode-0"])
            session = pool.session("decode-0")
            assert session is not None
            reply = session.submit(Leg.WHOLE, call(), None)
            await reply.read()
        with pytest.raises(WorkerLost):
            await read_all(reply)
        assert ids(pool) == []
        assert pool.session("decode-0") is None
        async with served(HangingWorker(), port=int(d.address.rpartition(":")[2])):
            await until(pool, lambda: ids(pool) == ["decode-0"])


async def test_greater_epoch_replaces_the_session() -> None:
    announcements = Announcements()
    old, new = HangingWorker(), HangingWorker(hello(epoch=2))
    async with served(old) as (first, _), served(new) as (second, _), pool_of(announcements) as pool:
        announcements.announce(first)
        await until(pool, lambda: ids(pool) == ["decode-0"])
        announcements.announce(second)
        await until(pool, lambda: [v.hello.epoch for v in pool.view().workers] == [2])


async def test_worker_of_the_wrong_epoch_is_never_in_the_view() -> None:
    announcements = Announcements()
    good = HangingWorker(hello("prefill-0", Role.PREFILL))
    async with served(HangingWorker()) as (d, _), served(good) as (p, _), pool_of(announcements) as pool:
        announcements.announce(replace(d, epoch=9), p)
        await until(pool, lambda: ids(pool) == ["prefill-0"])
        announcements.announce(d, p)
        await until(pool, lambda: ids(pool) == ["decode-0", "prefill-0"])


async def test_unlike_fingerprints_stay_in_the_view() -> None:
    announcements = Announcements()
    other = hello("prefill-0", Role.PREFILL)
    other = replace(other, fingerprint=replace(other.fingerprint, dtype="bf16"))
    async with (
        served(HangingWorker()) as (d, _),
        served(HangingWorker(other)) as (p, _),
        pool_of(announcements) as pool,
    ):
        announcements.announce(d, p)
        await until(pool, lambda: len(ids(pool)) == 2)
        one, two = pool.view().workers
        assert one.hello.fingerprint.differences(two.hello.fingerprint) == ("dtype",)


async def test_waiting_for_a_change_ends_in_time() -> None:
    pool = WorkerPool(StaticMembership(Membership(1)), token="")
    assert await pool.wait_changed(0.01) is False
    await pool.start()
    assert await pool.wait_changed(WAIT_S) is True
    assert pool.membership == Membership(1)
    await pool.close()


async def test_decode_leg_owes_no_prompt() -> None:
    announcements = Announcements()
    async with served(HangingWorker()) as (d, _), pool_of(announcements) as pool:
        announcements.announce(d)
        await until(pool, lambda: ids(pool) == ["decode-0"])
        session = pool.session("decode-0")
        assert session is not None
        session.submit(Leg.DECODE, call(), Handover("t", "", 1.0), prompt_tokens=70)
        (worker,) = pool.view().workers
        assert (worker.inflight_requests, worker.inflight_prompt_tokens) == (1, 0)
