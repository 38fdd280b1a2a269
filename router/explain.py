"""Which requests can still be explained, and the explanation of one, made when somebody asks.

Owns the ring of ended requests, bounded by count and by bytes, and the set of running ones. The candidates are found by
asking the pure policy again, with the very objects that it decided on. Must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import Final

from core.policy.protocol import Policy
from core.types import ClusterView, Decision, Forecast, Hold, LegFacts, Rejection, RequestShape, Route
from router.explanation import (
    Actual,
    CacheUse,
    Candidate,
    Choice,
    Explanation,
    FailedTry,
    Held,
    Predicted,
    ResumedTold,
    Stage,
    TimelineTold,
)
from router.record import NO_VIEW, RequestRecord, verdict_of
from router.timeline import STAGES, Timeline

MAX_BYTES: Final = 64 << 20
MAX_CANDIDATES: Final = 10
# Sizes of CPython 3.11 on 64 bits, by sys.getsizeof of the objects that a record owns alone, rounded up.
_RECORD_BYTES: Final = 1600
_WORKER_BYTES: Final = 450  # a WorkerView with state, speed and numbers
_CACHED_BYTES: Final = 90  # one pair of RequestShape.cached

_Key = tuple[str, str]  # tenant, request id: what another tenant asks for is not found
_Options = Callable[..., tuple[Route, ...]]


class Explainer:
    """Remembers requests and explains them, each to its own tenant only."""

    def __init__(
        self, policy: Policy, *, clock: Callable[[], float], max_requests: int, max_bytes: int = MAX_BYTES
    ) -> None:
        """Keep at most so many ended requests; `clock` is that of the marks."""
        self._options: _Options | None = getattr(policy, "options", None)
        self._clock = clock
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._running: dict[_Key, RequestRecord] = {}  # the latest of each key; bounded by the router's own limit
        self._ended: dict[_Key, tuple[RequestRecord, int]] = {}  # with its bytes, oldest first
        self._bytes = 0  # sum of those
        self._last_view = NO_VIEW  # of the request that ended last: what it shares with the next is counted once

    def __len__(self) -> int:
        """Count the ended requests that are kept."""
        return len(self._ended)

    @property
    def kept_bytes(self) -> int:
        """What the ended requests take, about."""
        return self._bytes

    def began(self, record: RequestRecord) -> None:
        """Take a request up whose id is known."""
        self._running[record.tenant, record.request_id] = record

    def ended(self, record: RequestRecord) -> None:
        """Move a request to the ring; the oldest ones there make room."""
        key = record.tenant, record.request_id
        if self._running.get(key) is record:
            del self._running[key]
        if not self._max_requests:
            return
        before = self._ended.pop(key, None)
        if before is not None:
            self._bytes -= before[1]
        size = self._size(record)
        self._ended[key] = record, size
        self._bytes += size
        while len(self._ended) > self._max_requests or self._bytes > self._max_bytes:
            self._bytes -= self._ended.pop(next(iter(self._ended)))[1]

    def explain(self, request_id: str, tenant: str | None) -> Explanation | None:
        """Explain a request of this tenant, None: the latest of anybody; None when it is not known, or another's."""
        key = self._latest_key(request_id) if tenant is None else (tenant, request_id)
        record = self._running.get(key)
        if record is None:
            found = self._ended.get(key)
            if found is None:
                return None
            record = found[0]
        return self._explanation(record)

    def latest(self, tenant: str | None) -> Iterator[RequestRecord]:
        """Yield the requests of this tenant, None: of all; running ones first, then ended ones, the latest first.

        Take what is wanted without giving way to other tasks.
        """
        ended = (record for record, _ in reversed(self._ended.values()))
        for record in chain(reversed(self._running.values()), ended):
            if tenant is None or record.tenant == tenant:
                yield record

    def _latest_key(self, request_id: str) -> _Key:
        """Find whose request it is; running ones first, for they began last."""
        keys = chain(reversed(self._running), reversed(self._ended))
        return next((key for key in keys if key[1] == request_id), ("", request_id))

    def _size(self, record: RequestRecord) -> int:
        workers, before = record.view.workers, self._last_view.workers
        size = _RECORD_BYTES
        if record.view is not self._last_view:
            own = len(workers) - sum(map(is_, workers, before))
            size += 8 * len(workers) + _WORKER_BYTES * own + 16 * len(record.view.held.keys_s)
            self._last_view = record.view
        return size if record.shape is None else size + _CACHED_BYTES * len(record.shape.cached)

    def _explanation(self, record: RequestRecord) -> Explanation:
        routes = self._candidates(record)
        arrived_s, forecast = record.marks.arrived_s, record.forecast
        return Explanation(
            request_id=record.request_id,
            path=record.path,
            state="running" if record.is_running else "ended",
            status=record.status,
            slo_class=record.slo.name,
            ttft_target_ms=_ms(record.slo.ttft_s),
            tpot_target_ms=_ms(record.slo.tpot_s),
            verdict=verdict_of(record),
            choice=_choice(record, routes),
            candidates=tuple(_candidate(route, record.decision) for route in routes),
            holds=tuple(Held(_ms(at - arrived_s), _ms(h.until_s - arrived_s), h.reason) for at, h in record.holds),
            num_holds=record.num_holds,
            failed_tries=tuple(FailedTry(route.decode, route.prefill, error) for route, error in record.tries),
            cache=_cache(record),
            timeline=_timeline(record, record.timeline_at(self._clock())),
            predicted_ttft=None if forecast is None else predicted_ttft(forecast, before_s=record.waited_s),
            predicted_tpot=None if forecast is None else predicted_tpot(forecast),
            actual=_actual(record),
            resumes=tuple(ResumedTold(_ms(r.at_s), _ms(r.gap_s), r.decode) for r in record.resumes),
        )

    def _candidates(self, record: RequestRecord) -> tuple[Route, ...]:
        """Ask the policy again; the route taken is always among the answers."""
        shape = record.shape
        if self._options is None or shape is None:
            return ()
        view = record.view.without(record.excluded)
        routes = _asked(self._options, shape, view, record.decision_s)
        taken = record.decision
        if isinstance(taken, Route) and not any(_same(taken, route) for route in routes):
            routes = (*routes[: MAX_CANDIDATES - 1], taken)
        return routes


def _asked(options: _Options, shape: RequestShape, view: ClusterView, now_s: float) -> tuple[Route, ...]:
    return options(shape, view, now_s, limit=MAX_CANDIDATES)


def predicted_ttft(forecast: Forecast, *, before_s: float = 0.0) -> Predicted:
    """Write a predicted TTFT with its interval; `before_s` has passed and is certain."""
    ends_ms = _ms(before_s + forecast.ttft_low_s), _ms(before_s + forecast.ttft_high_s)
    return Predicted(_ms(before_s + forecast.ttft_s), *ends_ms)


def predicted_tpot(forecast: Forecast) -> Predicted:
    """Write a predicted TPOT with its interval."""
    return Predicted(_ms(forecast.tpot_s), _ms(forecast.tpot_low_s), _ms(forecast.tpot_high_s))


def _choice(record: RequestRecord, routes: tuple[Route, ...]) -> Choice | None:
    decision, at_ms = record.decision, _ms(record.waited_s)
    match decision:
        case None:
            return None
        case Route():
            because = _because(decision, routes)
            return Choice("route", at_ms, decision.decode, decision.prefill, decision.reason, because)
        case Hold():
            return Choice("hold", at_ms, None, None, decision.reason, "no worker had room")
        case Rejection():
            best = routes[0] if routes else None
            because = "no route was open"
            if best is not None and best.forecast is not None:
                because = f"the best route, {_named(best)}, was expected to answer after {best.forecast.ttft_s:.3f} s"
            earliest_ms = None if decision.earliest_s is None else _ms(decision.earliest_s)
            reason = f"{decision.error}: {decision.reason}"
            return Choice("rejection", at_ms, None, None, reason, because, earliest_ms, decision.confidence)


def _because(taken: Route, routes: tuple[Route, ...]) -> str:
    """Compare the route taken with the best of the others, by the part in which they differ most."""
    others = [route for route in routes if not _same(route, taken)]
    if not others:
        return "it was the only route" if routes else "the policy does not predict"
    other = others[0]
    ours = next((route.forecast for route in routes if _same(route, taken)), None) or taken.forecast
    theirs = other.forecast
    if ours is None or theirs is None:
        return f"preferred to {_named(other)}"
    gain_s = theirs.ttft_s - ours.ttft_s
    name, part_s = max(
        (("queue", theirs.queue_s - ours.queue_s), ("prefill", theirs.prefill_s - ours.prefill_s),
         ("transfer", theirs.transfer_s - ours.transfer_s), ("wait for blocks", theirs.blocks_s - ours.blocks_s),
         ("first step", theirs.first_step_s - ours.first_step_s)),
        key=lambda part: abs(part[1]),
    )  # fmt: skip
    if gain_s >= 0.0005:
        return f"{_ms(gain_s):g} ms sooner than {_named(other)}, most of it {name} ({_ms(part_s):g} ms less)"
    tpot_s = theirs.tpot_s - ours.tpot_s
    if tpot_s > 0:
        later = f", {_ms(-gain_s):g} ms later" if gain_s <= -0.0005 else ", as soon"
        return f"{_ms(tpot_s):g} ms less for each token than {_named(other)}{later}"
    return f"preferred to {_named(other)}: {taken.reason}"


def _candidate(route: Route, decision: Decision | None) -> Candidate:
    chosen = isinstance(decision, Route) and _same(route, decision)
    # Of the route taken, what was predicted when it was: then nothing that is held goes before it any more.
    forecast = decision.forecast if isinstance(decision, Route) and chosen else route.forecast
    if forecast is None:
        return Candidate(route.decode, route.prefill, chosen, route.reason, *[None] * 7)
    return Candidate(
        route.decode,
        route.prefill,
        chosen,
        route.reason,
        predicted_ttft(forecast),
        predicted_tpot(forecast),
        _ms(forecast.queue_s),
        _ms(forecast.prefill_s),
        _ms(forecast.transfer_s),
        _ms(forecast.blocks_s),
        _ms(forecast.first_step_s),
    )


def _cache(record: RequestRecord) -> CacheUse:
    is_pair = record.prefill is not None
    sender, answering = record.prefill_facts, record.answering_facts
    known: LegFacts | None = answering or sender
    return CacheUse(
        prompt_tokens_estimate=0 if record.shape is None else record.shape.prompt_tokens,
        prompt_tokens=known.prompt_tokens if known is not None and known.prompt_tokens else None,
        believed_prefill=record.believed_cached(record.prefill),
        believed_decode=record.believed_cached(record.decode),
        cached_prefill=sender.cached_tokens if is_pair and sender is not None else None,
        cached_decode=None if answering is None else answering.cached_tokens,
        received_decode=None if answering is None else answering.received_tokens,
    )


def _timeline(record: RequestRecord, line: Timeline) -> TimelineTold:
    first_s, ended_s = record.marks.first_s, record.marks.ended_s
    return TimelineTold(
        line.until,
        line.total_us / 1000,
        tuple(Stage(name, us / 1000) for name, us in zip(STAGES, line.stages_us, strict=True)),
        None if line.transfer_hidden_us is None else line.transfer_hidden_us / 1000,
        None if first_s is None or ended_s is None else _ms(ended_s - first_s),
    )


def _actual(record: RequestRecord) -> Actual:
    ttft_s, tpot_s = record.actual_ttft_s, record.tpot_s
    return Actual(
        None if ttft_s is None else _ms(ttft_s),
        None if tpot_s is None else _ms(tpot_s),
        None if record.is_running else _ms(record.e2e_s),
        record.output_tokens,
    )


def _same(one: Route, other: Route) -> bool:
    return one.decode == other.decode and one.prefill == other.prefill


def _named(route: Route) -> str:
    return f"{route.decode} alone" if route.prefill is None else f"{route.prefill} + {route.decode}"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
