"""A store at both ends of a link: what one end sets the other sees, nobody waits for ever, and a liar is refused."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from core.errors import CorruptFrame
from kv_transfer.link_store import MAX_ENTRIES, LinkStore

WAIT = timedelta(seconds=30)


def joined() -> tuple[LinkStore, LinkStore]:
    ends: list[LinkStore] = []
    first = LinkStore(lambda message: ends[1].take(message), WAIT)
    second = LinkStore(lambda message: ends[0].take(message), WAIT)
    ends += [first, second]
    return first, second


def test_what_one_end_sets_the_other_gets() -> None:
    first, second = joined()
    first.set("0/key", b"\x00value")
    second.set("1/key", "text")
    for store in (first, second):
        assert store.get("0/key") == b"\x00value"
        assert store.get("1/key") == b"text"
        assert store.check(["0/key", "1/key"])
    assert not first.check(["other"])


def test_who_waits_is_woken_by_an_entry_and_by_the_end() -> None:
    first, second = joined()
    got: list[bytes | str] = []

    def get(key: str) -> None:
        try:
            got.append(first.get(key))
        except RuntimeError as exc:
            got.append(str(exc))

    for key, wake in (("key", lambda: second.set("key", b"1")), ("never", first.end)):
        waiting = threading.Thread(target=get, args=(key,))
        waiting.start()
        wake()
        waiting.join(30)
    assert got == [b"1", "the peer did not come to the group"]


def test_a_wait_ends_in_its_time() -> None:
    first, _ = joined()
    with pytest.raises(RuntimeError, match="did not come"):
        first.wait(["never"], timedelta(milliseconds=10))


def test_sealed_it_tells_the_peer_nothing_more() -> None:
    first, second = joined()
    first.seal()
    first.set("key", b"1")
    assert not second.check(["key"])


def test_a_peer_that_sets_too_much_or_nothing_is_refused() -> None:
    store, _ = joined()
    with pytest.raises(CorruptFrame):
        store.take(b"")
    for index in range(MAX_ENTRIES):
        store.set(str(index), b"")
    with pytest.raises(CorruptFrame):
        store.take(b"\x01\x00k")
