"""Whether a page is well-formed and needs nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Fails on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(text: str) -> None:
    """Assert that a page is whole, and has neither scripts nor anything fetched."""
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert not re.search(r"<script|<link|<img|src=|url\(|@import", text)
    links = set(re.findall(r"https?://[^\"'<\s]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not re.search(r'href="', text)
    assert all(link.startswith(("http://127.0.0.1", "http://a")) for link in links), links
    assert "prefers-color-scheme:dark" in text
