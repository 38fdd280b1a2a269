"""Pages are well-formed, escape what they are given, and need nothing from elsewhere."""

from __future__ import annotations

import re

from bench.goodput_plot import Curve, Panel
from bench.serving import page
from tests.support.html_pages import check


def test_everything_is_escaped() -> None:
    evil = "<b>&\"'"
    text = page.page(
        evil,
        page.paragraph(evil, "bad"),
        [
            page.section(evil, page.table((evil,), [(evil,), (page.Cell(evil, "good"),)]), page.listed([evil])),
            page.section("x", page.figure([Panel(evil, (Curve(evil, ((0.0, 1.0), (2.0, 3.0))),), evil, (1.0,))])),
        ],
    )
    check(text)
    assert "<b>" not in text
    assert page.listed([]) == ""


def test_pictures_take_the_colours_of_the_page() -> None:
    text = page.figure([Panel("x", (Curve("a", ((0.0, 1.0),), is_ours=True), Curve("b", ((0.0, 1.0),))))])
    assert "var(--ours)" in text
    assert not re.search(r'(fill|stroke)="#', text)
