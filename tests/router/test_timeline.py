"""A time line's stages are not negative and add up to the measured time.

Invariants, for any marks and any facts: sum of stages == total == measured TTFT; no stage is negative; the hidden
transfer is no part of the sum; equal arguments give equal time lines.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.types import LegFacts
from router.timeline import STAGES, Marks, Timeline, timeline_of

ANY = st.floats(allow_nan=True, allow_infinity=True)
SANE = st.floats(0, 100)
TOKENS = st.integers(0, 10_000)


def facts(seconds: st.SearchStrategy[float]) -> st.SearchStrategy[LegFacts]:
    return st.builds(LegFacts, TOKENS, TOKENS, TOKENS, seconds, seconds, seconds, seconds)


@st.composite
def marks(draw: st.DrawFn, seconds: st.SearchStrategy[float]) -> Marks:
    made = Marks(draw(seconds))
    for name in ("decided_s", "submitted_s", "first_s", "ended_s"):
        setattr(made, name, draw(st.none() | seconds))
    made.held_s = draw(seconds)
    return made


def measured_us(at: Marks) -> int | None:
    if at.first_s is None:
        return None
    seconds = at.first_s - at.arrived_s
    return 0 if not seconds > 0 else int(min(seconds, 31_536_000) * 1e6 + 0.5)


@given(
    at=marks(ANY) | marks(SANE),
    prefill=st.none() | facts(ANY) | facts(SANE),
    answering=st.none() | facts(ANY) | facts(SANE),
    is_pair=st.booleans(),
    attempts=st.integers(0, 5),
    now_s=st.none() | ANY,
    had_blocks=st.booleans(),
)
def test_stages_sum_to_the_measured_time(
    at: Marks,
    prefill: LegFacts | None,
    answering: LegFacts | None,
    is_pair: bool,
    attempts: int,
    now_s: float | None,
    had_blocks: bool,
) -> None:
    def split() -> Timeline:
        return timeline_of(
            at,
            prefill,
            answering,
            is_pair=is_pair,
            attempts=attempts,
            now_s=now_s,
            had_blocks=had_blocks,
        )

    line = split()
    assert sum(line.stages_us) == line.total_us
    assert min(line.stages_us) >= 0
    assert len(line.stages_us) == len(STAGES)
    assert line.transfer_hidden_us is None or line.transfer_hidden_us >= 0
    if at.first_s is not None:
        assert line.ttft_us == measured_us(at)
    assert split() == line


def pair_marks() -> Marks:
    at = Marks(10.0)
    at.decided_s, at.submitted_s = 10.001, 10.002
    at.first_s, at.ended_s = 10.080, 10.500
    return at


PREFILL = LegFacts(prompt_tokens=512, cached_tokens=128, queued_s=0.010, prefill_s=0.040)
DECODE = LegFacts(512, 0, 511, queued_s=0.065, prefill_s=0.008, blocks_s=0.020, landed_s=0.060)


def test_a_pair_is_split_by_both_engines() -> None:
    # From submission: prefill begins at 10 ms and ends at 50, KV landed at 60, decode stepped from 65 to 73.
    line = timeline_of(pair_marks(), PREFILL, DECODE, is_pair=True)
    assert line == Timeline(
        "first byte",
        80_000,
        read_us=2_000,
        queue_us=10_000,
        prefill_us=40_000,
        transfer_exposed_us=10_000,
        blocks_us=5_000,
        first_step_us=8_000,
        unattributed_us=5_000,
        transfer_hidden_us=30_000,  # blocks were there at 20 ms
    )


def test_blocks_that_came_after_prefill_are_no_transfer() -> None:
    late = LegFacts(512, 0, 511, queued_s=0.065, prefill_s=0.008, blocks_s=0.055, landed_s=0.060)
    line = timeline_of(pair_marks(), PREFILL, late, is_pair=True)
    assert (line.transfer_exposed_us, line.blocks_us, line.transfer_hidden_us) == (5_000, 10_000, 0)


def test_without_the_time_of_landing_the_gap_is_transfer_if_there_were_blocks() -> None:
    decode = LegFacts(512, 0, 511, queued_s=0.065, prefill_s=0.008)
    line = timeline_of(pair_marks(), PREFILL, decode, is_pair=True)
    assert (line.transfer_exposed_us, line.blocks_us, line.unattributed_us) == (0, 0, 20_000)
    assert line.transfer_hidden_us is None
    line = timeline_of(pair_marks(), PREFILL, decode, is_pair=True, had_blocks=True)
    assert (line.transfer_exposed_us, line.blocks_us, line.unattributed_us) == (15_000, 0, 5_000)


def test_a_prompt_that_decode_computed_itself_is_no_hand_over() -> None:
    alone = LegFacts(512, 0, 0, queued_s=0.020, prefill_s=0.050)
    line = timeline_of(pair_marks(), PREFILL, alone, is_pair=True)
    assert (line.queue_us, line.prefill_us, line.first_step_us, line.unattributed_us) == (20_000, 50_000, 0, 8_000)


def test_without_facts_all_after_submission_is_unattributed() -> None:
    line = timeline_of(pair_marks(), None, None, is_pair=True)
    assert line.stages_us == (2_000, 0, 0, 0, 0, 0, 0, 0, 78_000)


def test_holding_and_failed_tries_stand_apart_from_reading() -> None:
    at = pair_marks()
    at.decided_s, at.held_s, at.submitted_s = 10.001, 0.030, 10.050
    line = timeline_of(at, None, None, is_pair=False, attempts=2)
    assert (line.read_us, line.held_us, line.retried_us, line.unattributed_us) == (1_000, 30_000, 19_000, 30_000)


def test_the_first_token_of_a_document_is_reported_by_its_worker() -> None:
    at = pair_marks()
    at.first_s = None
    line = timeline_of(at, None, LegFacts(queued_s=0.01, prefill_s=0.05), is_pair=False)
    assert (line.until, line.ttft_us) == ("first token", 62_000)
    assert timeline_of(at, None, None, is_pair=False).ttft_us is None


@pytest.mark.parametrize("now_s", [None, 10.25, math.nan])
def test_a_request_that_runs_is_told_until_now(now_s: float | None) -> None:
    at = Marks(10.0)
    at.decided_s, at.held_s = 10.001, 0.2
    line = timeline_of(at, None, None, is_pair=False, now_s=now_s)
    assert line.until == "now"
    assert line.total_us == (250_000 if now_s == 10.25 else 0)
    assert line.held_us == (200_000 if now_s == 10.25 else 0)
