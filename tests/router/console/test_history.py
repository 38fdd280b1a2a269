"""The hour behind the console's curves: counts are right in every window, and memory does not grow.

Hypothesis: whatever ends when, sums over a window are those of a plain list of what ended in its slots; the sums of an
hour do not depend on when they were asked for before.
"""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from core.router_spec import SLOTarget
from router.console.history import (
    BUCKET_S,
    MAX_REASONS,
    MAX_SERIES,
    MINUTE_BUCKETS,
    NUM_BUCKETS,
    History,
    Sums,
    slot_of,
)
from router.record import RequestRecord
from router.timeline import STAGES
from tests.support.records import DECODE_FACTS, PREFILL_FACTS, SLO, begun, routed, streamed


def ended(
    at_s: float, kept: bool | None, *, refusal: str = "", tenant: str = "", slo: SLOTarget = SLO
) -> RequestRecord:
    record = RequestRecord("r", tenant, slo, at_s - 0.5)
    record.ended(at_s, first_s=None)
    record.kept, record.refusal = kept, refusal
    record.outcome = "rejected" if refusal else "ok" if kept is not None else "client_gone"
    return record


def test_an_answered_request_is_counted_with_its_tokens_and_stages() -> None:
    history = History()
    history.ended(streamed(routed(begun())))
    found = history.sums(None, "chat", 11.0, MINUTE_BUCKETS)
    assert (found.kept, found.missed, found.refused, found.other, found.output_tokens, found.timed) == (
        1,
        0,
        0,
        0,
        20,
        1,
    )
    assert sum(found.stages_us) == 80_000
    assert found.stages_us[STAGES.index("prefill")] == round(PREFILL_FACTS.prefill_s * 1e6)
    assert found.stages_us[STAGES.index("first_step")] == round(DECODE_FACTS.prefill_s * 1e6)
    assert found.attainment == 1.0


def test_refusals_are_missed_and_have_reasons() -> None:
    history = History()
    for refusal in ("overloaded", "overloaded", "slo_infeasible"):
        history.ended(ended(100.0, False, refusal=refusal))
    history.ended(ended(100.0, None))
    found = history.sums(None, "chat", 100.0, MINUTE_BUCKETS)
    assert (found.kept, found.missed, found.refused, found.other) == (0, 3, 3, 1)
    assert history.refusals(None, "chat", 100.0, MINUTE_BUCKETS) == {"overloaded": 2, "slo_infeasible": 1}
    assert history.refusals(None, "chat", 100.0 + 60, MINUTE_BUCKETS) == {}
    assert history.refusals(None, "chat", 100.0 + 60, NUM_BUCKETS) == {"overloaded": 2, "slo_infeasible": 1}
    assert history.refusals(None, "chat", 100.0 + 3600, NUM_BUCKETS) == {}


def test_what_is_not_known_is_nothing() -> None:
    history = History()
    assert history.sums(None, "chat", 5.0, NUM_BUCKETS) == Sums()
    assert Sums().attainment is None
    assert history.rows("acme", "chat", 5.0, NUM_BUCKETS) == []
    assert history.refusals("acme", "chat", 5.0, NUM_BUCKETS) == {}


def test_a_tenant_has_series_of_its_own() -> None:
    history = History()
    history.ended(ended(100.0, True, tenant="a"))
    history.ended(ended(100.0, False, tenant="b"))
    assert history.sums("a", "chat", 100.0, MINUTE_BUCKETS).kept == 1
    assert history.sums("a", "chat", 100.0, MINUTE_BUCKETS).missed == 0
    assert history.sums("b", "chat", 100.0, MINUTE_BUCKETS).missed == 1
    assert history.sums(None, "chat", 100.0, MINUTE_BUCKETS).attainment == 0.5


def test_the_quietest_tenant_makes_room() -> None:
    history = History()
    for number in range(MAX_SERIES):
        history.ended(ended(100.0 + BUCKET_S * number, True, tenant=f"t{number}"))
    history.ended(ended(100.0 + BUCKET_S * MAX_SERIES, True, tenant="t0"))
    now_s = 100.0 + BUCKET_S * (MAX_SERIES + 1)
    history.ended(ended(now_s, True, tenant="new"))
    kept = {t for t in ("t0", "t1", "t2", "new") if history.sums(t, "chat", now_s, NUM_BUCKETS).kept}
    assert kept == {"t0", "t2", "new"}


def test_reasons_and_rows_are_bounded() -> None:
    history = History()
    for number in range(MAX_REASONS + 5):
        history.ended(ended(100.0, False, refusal=f"reason{number}"))
    assert len(history.refusals(None, "chat", 100.0, NUM_BUCKETS)) == MAX_REASONS
    assert history.sums(None, "chat", 100.0, NUM_BUCKETS).refused == MAX_REASONS + 5
    [series] = history._all.values()
    before = sys.getsizeof(series.rows) + sys.getsizeof(series.stamps)
    for second in range(0, 3 * 3600, 7):
        history.ended(ended(100.0 + second, True))
    assert sys.getsizeof(series.rows) + sys.getsizeof(series.stamps) == before < 50_000


@given(
    st.lists(st.tuples(st.integers(0, 12_000), st.sampled_from([True, False, None])), max_size=60),
    st.integers(1, NUM_BUCKETS),
    st.integers(0, 4000),
)
def test_windows_count_what_ended_in_them(ends: list[tuple[int, bool | None]], buckets: int, later_s: int) -> None:
    history = History()
    ends.sort(key=lambda end: end[0])
    for at_s, kept in ends:
        history.ended(ended(float(at_s), kept))
        history.sums(None, "chat", float(at_s), NUM_BUCKETS)  # what was asked before changes nothing
    now_s = float((ends[-1][0] if ends else 0) + later_s)
    newest = slot_of(now_s)
    within = [(at_s, kept) for at_s, kept in ends if newest - buckets < slot_of(at_s) <= newest]
    for wanted in (buckets, NUM_BUCKETS):
        found = history.sums(None, "chat", now_s, wanted)
        expected = [k for at_s, k in ends if newest - wanted < slot_of(at_s) <= newest]
        assert (found.kept, found.missed, found.other) == tuple(expected.count(k) for k in (True, False, None))
    rows = history.rows(None, "chat", now_s, buckets)
    assert [row[0] for row in rows] == sorted({slot_of(at_s) for at_s, kept in within if kept is not None})
    assert sum(row[1] for row in rows) == sum(kept is True for _, kept in within)
