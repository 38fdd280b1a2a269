"""Every event comes back from its JSON line as it was; what is none is refused."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from core.cluster_state import load_of
from core.events import (
    LOAD_FIELDS,
    NO_LOAD,
    Decided,
    Event,
    HeldChanged,
    LogOpened,
    Skipped,
    WorkerJoined,
    WorkerLeft,
    WorkerLoaded,
    event_of,
    fields_of,
    own_counts_of,
    state_of,
)
from core.types import (
    Forecast,
    HeldWork,
    Hold,
    Margins,
    Rejection,
    RequestShape,
    Role,
    Route,
    WorkerSpeed,
    WorkerState,
    WorkerView,
)
from tests.support.contexts import context
from tests.support.views import worker

VIEW = worker("p0", Role.PREFILL, requests=2, tokens=300, prompts=2, since_s=1.25, num_running=1, kv_blocks_used=3)
FORECAST = Forecast(0.01, 0.2, 0.03, 0.0, 0.05, 0.02, 0.3, 0.1, 0.2, 0.4, 0.018, 0.022)
OWN_TARGET = RequestShape("r-2", 100, 8, "interactive", tenant="acme", ttft_s=0.3, cached=(("p0", 64), ("p1", 0)))
REQUEST = RequestShape("r-1", 100, None, "interactive", "n>1", 7, margins=Margins(-1.0, 1.5, -2.0, 4.0, -0.5, 0.5))

EVENTS: tuple[Event, ...] = (
    LogOpened("slo-aware", context(overflow=True)),
    WorkerJoined(VIEW.record, VIEW.hello),
    WorkerLoaded("p0", load_of(VIEW)),
    WorkerLeft("p0"),
    Decided(1 / 3, REQUEST, ("d1",), Route("d0", None, "n>1")),
    Decided(0.1, REQUEST, (), Rejection("overloaded", "busy", 0.7, earliest_s=0.6, confidence=0.9)),
    HeldChanged(HeldWork((1.5, 2.0), (0, 100, 150)), HeldWork((7.0,), (0, 300))),
    Decided(0.2, OWN_TARGET, (), Hold("no worker has room", 0.7, 0.4, FORECAST)),
    Decided(0.3, OWN_TARGET, (), Route("d0", "p0", "least predicted TTFT", FORECAST)),
    Skipped(3),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_json_round_trip(event: Event) -> None:
    assert event_of(json.loads(json.dumps(fields_of(event)))) == event


def test_a_load_holds_all_that_changes_of_a_worker() -> None:
    grouped = {"record", "hello", "state", "speed"}
    own = [f.name for f in fields(WorkerView) if f.name not in grouped]
    said = [f.name for f in fields(WorkerState) if f.name not in NO_LOAD]
    changing = [*said, *own, *(f.name for f in fields(WorkerSpeed))]
    assert sorted(LOAD_FIELDS) == sorted(changing)
    load = load_of(VIEW)
    assert WorkerView(VIEW.record, VIEW.hello, state_of(load), **own_counts_of(load)) == VIEW


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "dance"}', "no event is called 'dance'"),
        ("{}", "no event is called None"),
        ('{"event": ["load"]}', "no event is called"),
        ('{"event": "left"}', "a left event does not look like this"),
        ('{"event": "load", "worker": "p0", "load": [1, 2]}', "19 values, not 2"),
        ('{"event": "worker", "record": {"role": "cook"}, "hello": {"role": "cook"}}', "'cook' is not a valid Role"),
        ('{"event": "decision", "at_s": 1, "request": {}, "excluded": [], "route": {}}', "does not look like this"),
        ('{"event": "log", "format": 99, "policy": "random", "context": {}}', "format 99"),
    ],
)
def test_what_is_no_event_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        event_of(json.loads(line))
