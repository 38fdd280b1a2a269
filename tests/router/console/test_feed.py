"""What watchers get: a tenant its own, the operator all, equal watchers the same, nobody anything while none watch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from core.errors import Overloaded
from core.policy.breaker import Breakers
from core.policy.calibration import Calibration
from core.router_spec import RouterSpec
from core.types import ClusterView, ControlDecision
from router.console.feed import MAX_WATCHERS, SHOWN_ENDED, SHOWN_RUNNING, ConsoleFeed, Sources
from router.console.history import History
from router.explain import Explainer
from router.health import Readiness
from tests.support.records import SLO, VIEW, TablePolicy, begun, routed, streamed

SPEC = replace(RouterSpec("127.0.0.1", "", ""), slo_classes=(SLO,), slo_default="chat", policy="slo-aware")


class Watched:
    """A feed, its clock, and how often its view was asked for."""

    def __init__(self, *decisions: ControlDecision, interval_s: float = 0.01) -> None:
        self.now_s = 10.6
        self.asked = 0
        self.explainer = Explainer(TablePolicy(), clock=lambda: self.now_s, max_requests=100)
        self.history = History()
        sources = Sources(
            view=self._view,
            announced=tuple,
            num_inflight=lambda: 3,
            readiness=Readiness(lambda: VIEW),
            breakers=Breakers(),
            explainer=self.explainer,
            calibration=Calibration(("chat",)),
            history=self.history,
            decisions=lambda: decisions,
        )
        self.feed = ConsoleFeed(
            SPEC, sources, clock=lambda: self.now_s, wall=lambda: 989.4 + self.now_s, interval_s=interval_s
        )

    def _view(self) -> ClusterView:
        self.asked += 1
        return VIEW

    def ended(self, request_id: str, tenant: str = "") -> None:
        record = streamed(routed(begun(request_id, tenant=tenant)))
        self.explainer.ended(record)
        self.history.ended(record)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    yield made
    made.feed.close()


def parsed(event: bytes) -> tuple[str, Any]:
    name, data = event.decode().rstrip("\n").split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def test_a_watcher_gets_the_hour_and_then_updates(watched: Watched) -> None:
    watched.ended("r1")
    events = watched.feed.watch(None)
    name, hello = parsed(await anext(events))
    assert (name, hello["tenant"], hello["policy"], hello["history"]) == (
        "hello",
        None,
        "slo-aware",
        {"chat": [[1, 1, 0, 0]]},
    )
    name, update = parsed(await anext(events))
    assert (name, update["inflight"], update["model"], update["slot"]) == ("update", 3, "m", 1)
    assert [w["id"] for w in update["workers"]] == ["prefill-0", "decode-0", "decode-1"]
    assert [r["id"] for r in update["requests"]] == ["r1"]
    assert update["classes"][0]["now"]["kept"] == 1
    assert update["decisions"] == []
    await events.aclose()


async def test_a_tenant_is_told_of_its_own_requests_alone(watched: Watched) -> None:
    watched.ended("mine", "acme")
    watched.ended("theirs", "umbrella")
    told = watched.feed.update("acme", watched.now_s)
    assert [r["id"] for r in told["requests"]] == ["mine"]
    assert told["classes"][0]["now"]["kept"] == 1
    assert not {"workers", "transfers", "events", "decisions", "inflight", "held", "model"} & set(told)
    assert "theirs" not in json.dumps(told)
    everything = watched.feed.update(None, watched.now_s)
    assert {r["tenant"] for r in everything["requests"]} == {"acme", "umbrella"}
    assert everything["classes"][0]["now"]["kept"] == 2


async def test_the_latest_requests_of_each_kind_are_shown(watched: Watched) -> None:
    for number in range(SHOWN_RUNNING + 5):
        watched.explainer.began(routed(begun(f"running{number}")))
    for number in range(SHOWN_ENDED + 5):
        watched.ended(f"ended{number}")
    shown = watched.feed.update(None, watched.now_s)["requests"]
    assert [r["running"] for r in shown] == [True] * SHOWN_RUNNING + [False] * SHOWN_ENDED
    assert (shown[0]["id"], shown[SHOWN_RUNNING]["id"]) == (f"running{SHOWN_RUNNING + 4}", f"ended{SHOWN_ENDED + 4}")


async def test_decisions_of_the_controller_are_shown_where_somebody_tells_them() -> None:
    watched = Watched(ControlDecision(900.0, "decode 2 -> 3", "TPOT of batch"))
    told = watched.feed.update(None, watched.now_s)
    assert told["decisions"] == [{"at_s": 900.0, "text": "decode 2 -> 3", "reason": "TPOT of batch", "outcome": ""}]


async def test_equal_watchers_share_what_is_rendered_and_nobody_costs_nothing(watched: Watched) -> None:
    assert watched.asked == 0
    several = [watched.feed.watch(None) for _ in range(3)]
    updates = [[await anext(events) for _ in range(2)][1] for events in several]
    assert len(set(updates)) == 1
    assert watched.asked == 1
    watched.now_s += 1
    again = [await anext(events) for events in several]
    assert watched.asked == 2
    assert again[0] != updates[0]
    for events in several:
        await events.aclose()
    assert watched.feed._rendered == {}


async def test_only_so_many_may_watch(watched: Watched) -> None:
    several = [watched.feed.watch(None) for _ in range(MAX_WATCHERS)]
    for events in several:
        watched.feed.check_room()
        await anext(events)
    with pytest.raises(Overloaded, match="consoles are open"):
        watched.feed.check_room()
    await several[0].aclose()
    watched.feed.check_room()
    for events in several:
        await events.aclose()


async def test_the_end_of_the_router_ends_every_watching() -> None:
    watched = Watched(interval_s=3600.0)
    events = watched.feed.watch(None)
    assert [parsed(await anext(events))[0] for _ in range(2)] == ["hello", "update"]
    waiting = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)
    watched.feed.close()
    async with asyncio.timeout(10):
        assert await waiting is None
