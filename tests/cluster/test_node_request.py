"""A start that needs more nodes asks for them and waits, no longer than it was told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster import node_request
from cluster.interrupts import Interrupted
from cluster.node_request import Bundle, describe_request, wait_for_room
from core.errors import ConfigError

NEED: tuple[Bundle, ...] = ({"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0})


class Autoscaler:
    """Makes room at the given question."""

    def __init__(self, *, at: int) -> None:
        self.at = at
        self.num_asked = 0
        self.requests: list[int] = []  # bundles in each request
        self.said: list[str] = []

    def find(self) -> None:
        self.num_asked += 1
        if self.num_asked < self.at:
            raise ConfigError("no room; give Ray a node")

    def wait(self, wait_s: float, check: Callable[[], None] = lambda: None) -> None:
        wait_for_room(self.find, NEED, wait_s=wait_s, check=check, say=self.said.append)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_request, "POLL_S", 0.001)


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> Autoscaler:
    made = Autoscaler(at=5)
    monkeypatch.setattr(node_request, "request_nodes", lambda bundles: made.requests.append(len(bundles)))
    return made


def test_where_there_is_room_nothing_is_asked_for(scaler: Autoscaler) -> None:
    scaler.at = 1
    scaler.wait(60)
    assert (scaler.requests, scaler.said) == ([], [])


def test_without_a_time_to_wait_it_is_refused_at_once_and_the_key_named(scaler: Autoscaler) -> None:
    with pytest.raises(ConfigError, match=r"no room; give Ray a node, or .*ray\.wait_for_nodes_s"):
        scaler.wait(0)
    assert (scaler.num_asked, scaler.requests) == (1, [])


def test_nodes_are_asked_for_once_and_waited_for(scaler: Autoscaler) -> None:
    scaler.wait(60)
    assert (scaler.num_asked, scaler.requests) == (5, [3])
    assert scaler.said == ["asked Ray's autoscaler for 2 x (1 CPU), 1 x (2 CPU, 1 GPU); waits for 60 s at most"]


def test_the_wait_is_bounded_and_the_request_withdrawn(scaler: Autoscaler) -> None:
    scaler.at = 10**9
    with pytest.raises(ConfigError, match=r"made no node for it in 0\.05 s"):
        scaler.wait(0.05)
    assert scaler.requests == [3, 0]


def test_an_interrupt_withdraws_the_request(scaler: Autoscaler) -> None:
    def interrupt() -> None:
        if scaler.num_asked == 3:
            raise Interrupted("SIGINT")

    with pytest.raises(Interrupted):
        scaler.wait(60, interrupt)
    assert scaler.requests == [3, 0]


def test_a_request_in_words() -> None:
    assert describe_request(()) == ""
    assert describe_request([{"CPU": 0.5}]) == "1 x (0.5 CPU)"
