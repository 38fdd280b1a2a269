"""The report says the verdict first, both kinds beside each other, and fits 100 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.cluster import LinkSpec
from sim.outcome import Target
from sim.plan import Interval, RatePoint, Shortfall, Verdict
from sim.report import render
from tests.support.plans import BATCH, CHAT, SETTING, apart, candidate, plan, question, together

P_D = candidate(apart(), (13.1, 14.2, 15.0))
ONE = candidate(together(), (10.9, 11.8, 12.6), group=(0,))
CURVE = (RatePoint(2, (1.0,), 2.0), RatePoint(14, (0.9,), 12.6), RatePoint(20, (0.2,), 4.0))


def test_the_verdict_comes_first_with_its_interval() -> None:
    text = render(plan(p_d=P_D, one=ONE, curve=CURVE), question(), SETTING)
    assert text.startswith(
        "P/D pays: P/D 3 x tp1 + 5 x tp1 carries 14.2 (13.1..15.0) requests/s within the promise, 1.77 per\nGPU.\n"
    )


def test_one_pool_is_said_to_be_better_where_it_is() -> None:
    better = replace(ONE, goodput=replace(ONE.goodput, low=19.0, mid=20.0, high=21.0))
    text = render(plan(verdict=Verdict.ONE_POOL, p_d=P_D, one=better), question(), SETTING)
    assert text.startswith("One pool is better here: one pool 8 x tp1 carries 20.0 (19.0..21.0) requests/s")


def test_both_kinds_stand_beside_each_other_with_their_ratio() -> None:
    both = plan(p_d=P_D, one=ONE, ratio=Interval(1.15, 1.2, 1.25))
    text = " ".join(render(both, question(), SETTING).split())
    apart_text = "prefill and decode 14.2 (13.1..15.0) requests/s, 1.77 per GPU, P/D 3 x tp1 + 5 x tp1 in steps of 8192"
    assert apart_text in text
    assert "one pool 11.8 (10.9..12.6) requests/s, 1.48 per GPU, one pool 8 x tp1 in steps of 2048 tokens" in text
    assert "1.20 (1.15..1.25) times as much apart, in equal draws" in text


def test_a_link_that_holds_prefill_and_decode_back_is_named() -> None:
    # 14.2 requests/s of 9 tokens, 1 MB each, over three links of 50 MB/s.
    slow = replace(apart(), link=LinkSpec(bytes_per_s=50e6, kv_bytes_per_token=1_000_000))
    answer = plan(p_d=replace(P_D, cluster=slow), one=ONE)
    assert "KV keeps each prefill worker's link 85 % busy" in render(answer, question(), SETTING)
    assert "busy" not in render(plan(p_d=P_D, one=ONE), question(), SETTING)


def test_a_doubt_is_said_first_with_what_is_chosen_all_the_same() -> None:
    doubtful = plan(verdict=Verdict.UNCLEAR, p_d=P_D, one=ONE, ratio=Interval(0.8, 1.2, 1.4))
    text = render(doubtful, question(), SETTING)
    assert text.startswith("No clear difference, but more is expected of: P/D 3 x tp1 + 5 x tp1 carries 14.2")
    for ratio, words in ((1.0, "so the simpler"), (0.8, "and more is expected of the simpler")):
        simpler = replace(doubtful, best=ONE, ratio=Interval(0.6, ratio, 1.4))
        first = render(simpler, question(), SETTING).split("\n\n")[0].replace("\n", " ")
        assert first.startswith(f"No clear difference, {words}: one pool 8 x tp1 carries 11.8")


def test_the_table_marks_the_best_and_prices_a_million_requests() -> None:
    lines = render(plan(p_d=P_D, one=ONE), question(), SETTING).splitlines()
    head = next(i for i, line in enumerate(lines) if line.lstrip().startswith("placement"))
    # 8 devices for 1e6 / 14.2 seconds are 156 hours.
    best = [">", "P/D", "3", "x", "tp1", "+", "5", "x", "tp1", "8192", "8", "14.2", "(13.1..15.0)"]
    assert lines[head + 1].split() == [*best, "1.77", "91", "%", "(88..94)", "156"]
    assert lines[head + 2].split()[:5] == ["one", "pool", "8", "x", "tp1"]
    assert lines[head + 2].split()[5] == "2048"


def test_money_is_named_only_where_prices_were_given() -> None:
    answer = plan(p_d=P_D, one=ONE)
    assert "GPUh/1M" in render(answer, question(), SETTING)
    assert "$/1M" in render(answer, question(), replace(SETTING, priced=True))


def test_an_infeasible_promise_names_what_binds_and_what_is_nearest() -> None:
    short = Shortfall("chat.tpot_ms", (replace(CHAT, tpot_s=0.0523),), 9.4, "decode steps take 52 ms at this load")
    answer = plan(verdict=Verdict.INFEASIBLE, p_d=P_D, one=ONE, shortfall=short)
    text = render(answer, question(rate=20.0), SETTING)
    assert text.startswith(
        "The promise cannot be kept at 20 requests/s with 8 x gpu-a (2 nodes of 4); nearest is P/D 3"
    )
    assert "  binding   chat.tpot_ms: decode steps take 52 ms at this load\n" in text
    assert "  nearest   chat: TTFT 400 ms and TPOT 52.3 ms for 90 % at 20 requests/s\n" in text
    assert "  or        the promise as it is, at up to 9.4 requests/s\n" in text
    assert "chat: TTFT 400 ms and TPOT 40 ms for 90 %" in text  # the promise asked for stays what it was


def test_nothing_that_fits_is_said_plainly() -> None:
    short = Shortfall("rate", (CHAT,), None, "the weights need 140 GB")
    text = render(plan(verdict=Verdict.INFEASIBLE, shortfall=short), question(), SETTING)
    assert text.startswith("This cannot be met: not even one worker fits 8 x gpu-a (2 nodes of 4).\n")
    assert "the weights need 140 GB" in text


def test_what_if_is_answered_as_asked() -> None:
    asked = replace(question(rate=20.0), fixed=apart())
    short = Shortfall("rate", (CHAT,), 14.2, "prefill is full")
    text = render(plan(verdict=Verdict.INFEASIBLE, p_d=P_D, shortfall=short), asked, SETTING)
    assert text.startswith("As asked: P/D 3 x tp1 + 5 x tp1 carries 14.2 (13.1..15.0) requests/s within the promise")
    assert "which does not keep it at 20 requests/s." in text.split("\n\n")[0].replace("\n", " ")


def test_unlike_devices_are_told_apart_by_letters() -> None:
    mixed = candidate(apart(), (13.1, 14.2, 15.0), group=(1, 0))
    text = render(plan(p_d=mixed, one=ONE), question(groups=2), SETTING)
    assert "A: 8 x gpu-a (2 nodes of 4), B: 8 x gpu-b (2 nodes of 4)" in text
    assert "P/D 3 x tp1 B + 5 x tp1 A" in text


def test_notes_and_statistics_come_last() -> None:
    setting = replace(SETTING, notes=("12 requests were left out",))
    lines = render(plan(p_d=P_D, notes=("no clear lead",)), question(), setting).splitlines()
    assert lines[-3:-1] == ["- 12 requests were left out", "- no clear lead"]
    assert lines[-1].startswith("- placements: 120 considered, 100 ruled out by bounds, 20 simulated with 90,000")


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_every_line_fits_and_any_number_of_classes_is_shown(classes: int, ascii_only: bool) -> None:
    targets = tuple(Target(f"a-class-of-requests-{i}", 0.4, 0.04) for i in range(classes))
    rows = [candidate(apart(100, 924), (1213.1, 1314.2, 1415.0), classes=classes)]
    rows += [candidate(together(2**i, tp=2), (1.1, 1.2 + i, 99.3), classes=classes, group=(0,)) for i in range(9)]
    curve = tuple(RatePoint(p.rate, p.attainment * classes, p.goodput) for p in CURVE)
    answer = plan(p_d=rows[0], one=rows[1], front=tuple(rows), curve=curve)
    text = render(answer, question(*targets), replace(SETTING, traffic="long words " * 30), ascii_only=ascii_only)
    assert [line for line in text.splitlines() if len(line) > 100] == []
    assert text.isascii() == ascii_only
    assert all(target.name in text for target in targets)


def test_classes_beside_each_other_have_a_column_each() -> None:
    both = candidate(apart(), (13.1, 14.2, 15.0), classes=2)
    text = render(plan(p_d=both), question(CHAT, BATCH), SETTING)
    head = next(line for line in text.splitlines() if line.lstrip().startswith("placement"))
    assert head.split()[-3:] == ["GPU", "chat", "batch"]
