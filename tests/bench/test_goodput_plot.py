"""Pictures are well-formed, hold every curve of every panel inside its axes, and give a policy one look everywhere."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.goodput_plot import Curve, Palette, Panel, plotted

SVG = "{http://www.w3.org/2000/svg}"


def panel(title: str) -> Panel:
    ours = Curve("ours", ((0.5, 0.5), (3.0, 1.2)), is_ours=True)
    return Panel(title, (ours, Curve("a & b", ((0.5, 0.4), (3.0, 0.0)))))


def test_panels_hold_all_curves_with_one_look_each() -> None:
    root = ElementTree.fromstring(plotted([panel("first"), panel("second"), panel("third")], columns=2))
    groups = root.findall(f"{SVG}g")
    assert len(groups) == 3
    lines = [[line.attrib for line in group.findall(f"{SVG}polyline")] for group in groups]
    assert [len(drawn) for drawn in lines] == [2] * 3
    looks = {tuple(line.get("stroke") for line in drawn) for drawn in lines}
    assert len(looks) == 1
    assert len(set(looks.pop())) == 2
    for line in (line for drawn in lines for line in drawn):
        points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
        assert all(0 <= x <= 230 and 0 <= y <= 150 for x, y in points)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"ours", "a & b", "first", "second", "third", "offered"} <= set(texts)


def test_nothing_measured_is_an_empty_picture() -> None:
    empty = Panel("none", (Curve("ours", ((1.0, 0.0),), is_ours=True),))
    assert ElementTree.fromstring(plotted([empty], columns=4)).find(f"{SVG}g") is not None
    assert ElementTree.fromstring(plotted([], columns=4)).find(f"{SVG}g") is None


def test_colours_titles_and_promises_are_drawn_as_asked() -> None:
    palette = Palette(ours="var(--a)", others=("var(--b)",), ink="currentColor", paper="none", axis="red", grid="none")
    drawn = Panel("ms", (Curve("ours", ((0.0, 10.0), (950.0, 99.0)), is_ours=True),), "ms of TTFT", (90.0,))
    text = plotted([drawn], columns=1, palette=palette)
    root = ElementTree.fromstring(text)
    assert "#" not in text
    assert any(path.get("stroke-dasharray") == "3 3" for path in root.iter(f"{SVG}path"))
    assert "ms of TTFT" in {each.text for each in root.iter(f"{SVG}text")}
    assert len(list(root.iter(f"{SVG}text"))) < 20  # ticks stay few for any range
