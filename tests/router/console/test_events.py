"""The ring of what the router says of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from router.console.events import MAX_CHARACTERS, MAX_EVENTS, EventRing
from router.log import REQUEST_LOGGER


@pytest.fixture
def ring(caplog: pytest.LogCaptureFixture) -> Iterator[EventRing]:
    caplog.set_level(logging.INFO, "router")
    caplog.set_level(logging.INFO, "cluster")
    ring = EventRing()
    ring.open()
    yield ring
    ring.close()


def test_lines_of_this_project_are_kept_but_not_those_of_requests(ring: EventRing) -> None:
    logging.getLogger("cluster.pool").info("worker %s connected", "decode-0")
    logging.getLogger("router.tenants").error("the tenants stay as they were")
    logging.getLogger(REQUEST_LOGGER).info('{"event":"request"}')
    logging.getLogger("uvicorn").error("not ours")
    assert [(e.level, e.source, e.text) for e in ring.latest] == [
        ("info", "cluster.pool", "worker decode-0 connected"),
        ("error", "router.tenants", "the tenants stay as they were"),
    ]


def test_the_ring_is_bounded_in_number_and_length(ring: EventRing) -> None:
    for number in range(MAX_EVENTS + 10):
        logging.getLogger("router").warning("%d %s", number, "x" * 2 * MAX_CHARACTERS)
    assert len(ring.latest) == MAX_EVENTS
    assert ring.latest[0].text.startswith("10 ")
    assert {len(event.text) for event in ring.latest} == {MAX_CHARACTERS}


def test_what_is_said_again_and_again_takes_one_place(ring: EventRing) -> None:
    for text in ("a", "b", "b", "b", "a"):
        logging.getLogger("router").warning(text)
    assert [(e.text, e.count) for e in ring.latest] == [("a", 1), ("b", 3), ("a", 1)]


def test_nothing_is_kept_after_the_end(ring: EventRing) -> None:
    ring.close()
    logging.getLogger("router").warning("late")
    assert not ring.latest
