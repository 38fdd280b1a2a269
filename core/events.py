"""Everything that a routing decision depends on, as events, and their form as JSON lines.

Owns the vocabulary of event logs. Must not know who writes or reads them. No event holds any part of a prompt, an
answer, a header or the cluster's token.

A log is a sequence of lines, each an object with the key `event`:

    log        a router began here with this policy; what it knew of workers before counts no more
    worker     a worker is connected and takes work, or is another one than before
    load       what changed of one worker, as the list LOAD_FIELDS names
    held       the requests that the router holds back, and those it has promised a time
    left       a worker takes no more work
    decision   a request, who it must not go to, and what the policy said
    skipped    decisions that were not written; what was known of workers counts no more
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from core.policy.context import PolicyContext
from core.types import (
    Decision,
    Fingerprint,
    Forecast,
    HeldWork,
    Hold,
    Margins,
    Rejection,
    RequestShape,
    Role,
    Route,
    WorkerHello,
    WorkerRecord,
    WorkerSpeed,
    WorkerState,
)

FORMAT: Final = 3
# Whose KV a worker does not take, or that it stands still, is no load: it shows in who a request must not go to.
NO_LOAD: Final = frozenset({"quarantined", "stalled"})
_STATE_FIELDS: Final = tuple(name for name in WorkerState.__dataclass_fields__ if name not in NO_LOAD)
_OWN_FIELDS: Final = (
    "inflight_requests",
    "inflight_prompt_tokens",
    "inflight_prompts",
    "inflight_prompt_pairs",
    "inflight_context_tokens",
    "prompting_since_s",
    "tightest_tpot_s",
)
_SPEED_FIELDS: Final = tuple(WorkerSpeed.__dataclass_fields__)
LOAD_FIELDS: Final = (*_STATE_FIELDS, *_OWN_FIELDS, *_SPEED_FIELDS)

Load = tuple[float | bool | None, ...]  # one value for each of LOAD_FIELDS
Fields = dict[str, Any]  # plain values, as JSON has them


@dataclass(frozen=True, slots=True)
class LogOpened:
    """A router began to decide by `policy`, made with `context`."""

    policy: str
    context: PolicyContext


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker takes work; one of the same id that did before is gone. Its load follows."""

    record: WorkerRecord
    hello: WorkerHello


@dataclass(frozen=True, slots=True)
class WorkerLoaded:
    """A worker's load as the router knows it."""

    worker_id: str
    load: Load


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker takes no more work."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class HeldChanged:
    """What the router holds back, and what it has promised a time."""

    held: HeldWork
    promised: HeldWork


@dataclass(frozen=True, slots=True)
class Decided:
    """What the policy said at `at_s` of a cluster without the `excluded` workers."""

    at_s: float
    request: RequestShape
    excluded: tuple[str, ...]
    decision: Decision


@dataclass(frozen=True, slots=True)
class Skipped:
    """So many decisions are not in the log."""

    decisions: int


Event = LogOpened | WorkerJoined | WorkerLoaded | WorkerLeft | HeldChanged | Decided | Skipped
_KIND_OF: Final = {Route: "route", Hold: "hold", Rejection: "rejection"}


def fields_of(event: Event) -> Fields:
    """Take an event apart into plain values; `event_of` gives back an equal event."""
    match event:
        case WorkerLoaded(worker_id, load):
            return {"event": "load", "worker": worker_id, "load": load}
        case Decided():
            return {
                "event": "decision",
                "at_s": event.at_s,
                "request": _plain(event.request),
                "excluded": event.excluded,
                _KIND_OF[type(event.decision)]: _plain(event.decision),
            }
        case WorkerJoined(record, hello):
            return {"event": "worker", "record": asdict(record), "hello": asdict(hello)}
        case WorkerLeft(worker_id):
            return {"event": "left", "worker": worker_id}
        case HeldChanged(held, promised):
            return {"event": "held", **_plain(held), "promised": _plain(promised)}
        case Skipped(decisions):
            return {"event": "skipped", "decisions": decisions}
        case LogOpened(policy, context):
            return {
                "event": "log",
                "format": FORMAT,
                "policy": policy,
                "context": json.loads(context.to_json()),
                "load_fields": LOAD_FIELDS,
            }


def _plain(flat: RequestShape | Decision | HeldWork) -> Fields:
    """Take plain values apart by name; dataclasses.asdict is ten times as slow, and this runs per decision."""
    if isinstance(flat, Rejection | HeldWork):
        return {name: getattr(flat, name) for name in flat.__dataclass_fields__}
    fields = flat._asdict()
    for name in ("forecast", "margins"):
        if (nested := fields.get(name)) is not None:
            fields[name] = nested._asdict()
    return fields


def event_of(fields: Mapping[str, Any]) -> Event:
    """Make the event that `fields_of` took apart.

    Raises ValueError that says what is wrong with `fields`.
    """
    kind = fields.get("event")
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise ValueError(f"no event is called {kind!r}")
    try:
        return read(fields)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"a {kind} event does not look like this: {exc!r}") from exc


def state_of(load: Load) -> WorkerState:
    """Read the part of a load that the worker said itself."""
    return WorkerState(**dict(zip(_STATE_FIELDS, load, strict=False)))  # type: ignore[arg-type]


def own_counts_of(load: Load) -> Fields:
    """Read the part of a load that the router counts and reckons itself, by the names of WorkerView's fields."""
    own = dict(zip((*_OWN_FIELDS, *_SPEED_FIELDS), load[len(_STATE_FIELDS) :], strict=True))
    return {name: own[name] for name in _OWN_FIELDS} | {"speed": WorkerSpeed(*(own[name] for name in _SPEED_FIELDS))}  # type: ignore[arg-type]


def _opened(fields: Mapping[str, Any]) -> LogOpened:
    if fields["format"] != FORMAT:
        raise ValueError(f"the log has format {fields['format']!r}, this version reads {FORMAT}")
    return LogOpened(fields["policy"], PolicyContext.from_json(json.dumps(fields["context"])))


def _joined(fields: Mapping[str, Any]) -> WorkerJoined:
    record, hello = dict(fields["record"]), dict(fields["hello"])
    record["role"], hello["role"] = Role(record["role"]), Role(hello["role"])
    hello["fingerprint"] = Fingerprint(**hello["fingerprint"])
    return WorkerJoined(WorkerRecord(**record), WorkerHello(**hello))


def _loaded(fields: Mapping[str, Any]) -> WorkerLoaded:
    load = tuple(fields["load"])
    if len(load) != len(LOAD_FIELDS):
        raise ValueError(f"a load has {len(LOAD_FIELDS)} values, not {len(load)}")
    if not all(isinstance(value, int | float | None) for value in load):
        raise ValueError("a load has a value that is no number")
    return WorkerLoaded(str(fields["worker"]), load)


def _decided(fields: Mapping[str, Any]) -> Decided:
    decision: Decision
    if "route" in fields:
        decision = Route(**_with_forecast(fields["route"]))
    elif "hold" in fields:
        decision = Hold(**_with_forecast(fields["hold"]))
    else:
        decision = Rejection(**fields["rejection"])
    request = dict(fields["request"])
    request["cached"] = tuple((str(worker_id), int(tokens)) for worker_id, tokens in request["cached"])
    if request["margins"] is not None:
        request["margins"] = Margins(**request["margins"])
    return Decided(fields["at_s"], RequestShape(**request), tuple(fields["excluded"]), decision)


def _with_forecast(fields: Mapping[str, Any]) -> Fields:
    forecast = fields["forecast"]
    return {**fields, "forecast": None if forecast is None else Forecast(**forecast)}


def _held(fields: Mapping[str, Any]) -> HeldChanged:
    return HeldChanged(_held_work(fields), _held_work(fields["promised"]))


def _held_work(fields: Mapping[str, Any]) -> HeldWork:
    return HeldWork(tuple(fields["keys_s"]), tuple(fields["tokens_before"]))


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Event]]] = {
    "log": _opened,
    "worker": _joined,
    "load": _loaded,
    "left": lambda fields: WorkerLeft(str(fields["worker"])),
    "held": _held,
    "decision": _decided,
    "skipped": lambda fields: Skipped(fields["decisions"]),
}
