"""Columns of workers.

- Whatever was asked of a roster before, its columns are those of a new one.
- Draining workers are in none; workers of a side stand in order of their ids.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from core.policy.context import PoolFacts
from core.policy.prediction import PoolForecast
from core.policy.roster import Receivers, Roster, Senders
from core.types import ClusterView, Role, WorkerSpeed, WorkerView
from tests.support.contexts import COST
from tests.support.views import worker

POOLS = {role: PoolForecast(PoolFacts(COST), COST) for role in Role}


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    ids = draw(st.lists(st.integers(0, 6), max_size=6, unique=True))
    members = [
        replace(
            worker(
                f"w{i}",
                draw(st.sampled_from(Role)),
                model=draw(st.sampled_from("ab")),
                requests=draw(st.integers(0, 3)),
                tokens=draw(st.integers(0, 3)) * 100,
                since_s=draw(st.none() | st.just(1.0)),
                draining=draw(st.booleans()),
            ),
            speed=WorkerSpeed(prefill_factor=draw(st.sampled_from((1.0, 2.0)))),
            tightest_tpot_s=draw(st.none() | st.just(0.05)),
        )
        for i in ids
    ]
    return ClusterView(tuple(members))


def columns(side: Senders | Receivers) -> dict[str, object]:
    fields = {name: getattr(side, name) for name in dir(side) if not name.startswith("_")}
    return {name: value for name, value in fields.items() if not callable(value)}


def all_columns(roster: Roster) -> list[tuple[dict[str, object], dict[str, object]]]:
    return [(columns(group.senders), columns(group.receivers)) for group in roster.groups]


@given(st.lists(views(), min_size=1, max_size=6), st.data())
def test_history_does_not_matter(asked: list[ClusterView], data: st.DataObject) -> None:
    roster = Roster(POOLS)
    for view in asked:
        changed = list(view.workers)
        if changed and data.draw(st.booleans()):
            slot = data.draw(st.integers(0, len(changed) - 1))
            roster.of(view)
            changed[slot] = replace(changed[slot], inflight_requests=9)
        now = ClusterView(tuple(changed))
        fresh = Roster(POOLS).of(now)
        assert all_columns(roster.of(now)) == all_columns(fresh)
        assert (roster.num_senders, roster.num_receivers) == (fresh.num_senders, fresh.num_receivers)


@given(views())
def test_who_takes_work_stands_once_in_order(view: ClusterView) -> None:
    roster = Roster(POOLS).of(view)
    stand: list[WorkerView] = []
    for group in roster.groups:
        for side in (group.senders, group.receivers):
            assert side.ids == sorted(side.ids)
            stand += side.views
        assert len({w.hello.fingerprint for w in (*group.senders.views, *group.receivers.views)}) == 1
    assert sorted(w.record.worker_id for w in stand) == sorted(
        w.record.worker_id for w in view.workers if not w.state.draining
    )
