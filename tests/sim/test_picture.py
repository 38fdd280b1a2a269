"""The picture is two panels of characters that fit a page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.outcome import Target
from sim.picture import ASCII, UNICODE, draw
from sim.plan import RatePoint

CHAT, BATCH = Target("chat", 0.4, 0.04), Target("batch", 9.0, 0.2, attainment=0.7)
CURVE = (RatePoint(1, (1.0, 1.0), 1.0), RatePoint(5, (0.9, 1.0), 4.6), RatePoint(9, (0.3, 0.6), 2.9))


def test_a_rising_then_falling_goodput_peaks_in_the_middle() -> None:
    rows = [line[8:45] for line in draw(CURVE, (CHAT, BATCH), ASCII)[1:12]]
    heights = [next(i for i, row in enumerate(rows) if row[column] == "*") for column in (0, 18, 36)]
    assert heights[1] == 0
    assert heights[0] > heights[2] > heights[1]


def test_each_class_has_a_mark_a_promise_line_and_a_name() -> None:
    lines = draw(CURVE, (CHAT, BATCH), UNICODE)
    assert lines[-1].split("   ")[-2:] == ["● chat (promised 90 %)", "○ batch (promised 70 %)"]
    text = "\n".join(line[48:] for line in lines)
    assert "●" in text
    assert "○" in text
    assert sum("┈┈" in line for line in lines) == 2


def test_axes_name_the_ends() -> None:
    lines = draw(CURVE, (CHAT, BATCH), ASCII)
    assert lines[1].split("|")[0].strip() == "4.6"
    assert lines[11].split("|")[0].strip() == "0"
    assert lines[13].split() == ["1", "5", "9", "1", "5", "9"]


def test_too_few_points_make_no_picture() -> None:
    assert draw((), (CHAT,), ASCII) == []
    assert draw(CURVE[:1], (CHAT,), ASCII) == []


@given(
    st.lists(
        st.tuples(st.floats(0.01, 1e5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30
    )
)
def test_any_curve_fits_a_hundred_columns(points: list[tuple[float, float, float, float]]) -> None:
    curve = tuple(RatePoint(rate, (a, b), rate * part) for rate, a, b, part in points)
    lines = draw(curve, (CHAT, BATCH), UNICODE)
    assert all(len(line) <= 100 for line in lines)
    assert len({rate for rate, *_ in points}) == 1 or len(lines) >= 15
