"""Hand-overs whose blocks are read in the prefill side's cache.

Invariants: what is served is what the cache held when the blocks were staged, whatever is written to them after the
sender has let go of them; nothing is staged unless blocks are taken back or the peer cannot read them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import torch

from kv_transfer.frames import Header
from kv_transfer.sender import HOLD_S
from kv_transfer.staging import CHUNK_BYTES
from kv_transfer.transport import Incoming, Serve, Transport
from tests.support.kv_side import LAYERS, WAIT_S, MakeSide, Side, wait_until

SHAPE = (2, 2048)  # a page: blocks 1 to 14 of 16 are shared as a whole wherever the cache lies
SOURCE, TARGET = [3, 1, 7, 12], [2, 9, 4, 5]
BYTES = LAYERS * len(SOURCE) * 4096


class Gate:
    """Holds landings up, at the receiving end of one transport, until it opens."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def wrap(self, transport: Transport) -> Transport:
        """Have a transport's streams pass here."""
        if transport.name == "shm":
            transport.listen = partial(self._listen, transport.listen)  # type: ignore[method-assign]
        return transport

    async def _listen(self, listen: Callable[[str, Serve], object], host: str, serve: Serve) -> str:
        async def served(incoming: Incoming) -> None:
            incoming.land = partial(self._land, incoming.land)  # type: ignore[method-assign]
            await serve(incoming)

        return str(await listen(host, served))  # type: ignore[misc]

    async def _land(
        self, land: Callable[[Header, Sequence[memoryview]], object], header: Header, rows: Sequence[memoryview]
    ) -> int:
        self.reached.set()
        await asyncio.to_thread(self.open.wait, WAIT_S)
        return await land(header, rows)  # type: ignore[misc,no-any-return]


class Pair:
    """Two engines of one host; the second hand-over is the first that reads the cache."""

    def __init__(self, make_side: MakeSide, gate: Gate, *, staging_bytes: int = 8 << 20) -> None:
        make = partial(make_side, transport="shm", shape=SHAPE, staging_bytes=staging_bytes)
        self.prefill: Side = make(seed=1)
        self.decode: Side = make(seed=2, wrap=gate.wrap)
        self.hand_over("first")
        self.wait_landed("first")
        gate.reached.clear()

    def hand_over(self, name: str, source: list[int] = SOURCE) -> None:
        """Reserve, offer and stage all."""
        self.decode.expect(name, TARGET)
        self.prefill.offer(self.decode.address, name, len(source))
        self.prefill.send_all(name, source, stays=True)

    def wait_landed(self, name: str, source: list[int] = SOURCE, *, was: dict[str, torch.Tensor] | None = None) -> None:
        """Wait for the end; the decode side has what the prefill side's cache holds, or `was`."""
        self.decode.wait_finished(name)
        assert not self.decode.bad
        for layer, cache in (was or self.prefill.cache).items():
            assert torch.equal(self.decode.cache[layer][TARGET], cache[source])
        wait_until(self.prefill.idle)

    def overwrite(self) -> dict[str, torch.Tensor]:
        """Use the blocks for something else, as the engine does once they are free; return what they held."""
        was = {layer: cache.clone() for layer, cache in self.prefill.cache.items()}
        for cache in self.prefill.cache.values():
            cache[SOURCE] = 0xEE
        return was

    @property
    def failures(self) -> int:
        transports = self.prefill.endpoint.stats()["transports"]
        assert isinstance(transports, dict)
        return sum(count["failures"] for count in transports.values())


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def pair(make_side: MakeSide, gate: Gate) -> Pair:
    return Pair(make_side, gate)


def test_blocks_are_read_where_they_lie(pair: Pair, gate: Gate) -> None:
    before = pair.prefill.endpoint.sender.bytes_uncopied  # of the first, if its stream was open in time
    gate.open.clear()
    pair.hand_over("t")
    assert (pair.prefill.endpoint.sender.cached_bytes, pair.prefill.endpoint.sender.staged_bytes) == (BYTES, 0)
    gate.open.set()
    pair.wait_landed("t")
    assert pair.prefill.endpoint.sender.let_go("t")
    assert pair.prefill.endpoint.sender.bytes_uncopied - before == BYTES


def test_blocks_at_the_edge_of_the_cache_are_copied(pair: Pair) -> None:
    source = [0, 1, 15, 2]
    for cache in pair.prefill.cache.values():
        cache[0] += 1
    pair.hand_over("t", source)
    pair.wait_landed("t", source)


def test_only_what_the_peer_lacks_is_read(pair: Pair) -> None:
    pair.decode.expect("t", TARGET[2:], first=2)
    pair.prefill.offer(pair.decode.address, "t", len(SOURCE))
    pair.prefill.send_all("t", SOURCE, stays=True)
    pair.decode.wait_finished("t")
    for layer, cache in pair.prefill.cache.items():
        assert torch.equal(pair.decode.cache[layer][TARGET[2:]], cache[SOURCE[2:]])
    assert not pair.decode.bad


def test_blocks_called_back_before_the_offer_is_taken_are_copied(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.sender.HOLD_S", WAIT_S)
    pair.prefill.offer(pair.decode.address, "t", len(SOURCE))  # nothing is reserved
    pair.prefill.send_all("t", SOURCE, stays=True)
    sender = pair.prefill.endpoint.sender
    assert sender.cached_bytes == BYTES
    assert not sender.let_go("t")
    sender.call_back("t")
    assert sender.cached_bytes == 0
    assert sender.staged_bytes > 0
    was = pair.overwrite()
    pair.decode.expect("t", TARGET)
    pair.wait_landed("t", was=was)
    assert (sender.resumed, pair.failures) == (0, 0)


def test_blocks_called_back_while_they_are_read_come_over_another_stream(pair: Pair, gate: Gate) -> None:
    gate.open.clear()
    pair.hand_over("t")
    assert gate.reached.wait(WAIT_S)
    sender = pair.prefill.endpoint.sender
    sender.call_back("t")
    was = pair.overwrite()
    gate.open.set()
    pair.wait_landed("t", was=was)
    assert (sender.resumed, pair.failures) == (1, 0)  # which nobody is blamed for
    assert pair.decode.endpoint.receiver.quarantine.mismatches == 0
    pair.hand_over("next")
    pair.wait_landed("next")


def test_a_peer_that_reads_nothing_does_not_keep_the_blocks(pair: Pair, gate: Gate) -> None:
    gate.open.clear()
    pair.hand_over("t")
    assert gate.reached.wait(WAIT_S)
    wait_until(lambda: pair.prefill.endpoint.sender.let_go("t"), 100 * HOLD_S)
    was = pair.overwrite()
    gate.open.set()
    pair.wait_landed("t", was=was)


def test_blocks_of_a_hand_over_that_was_given_up_are_free_at_once(pair: Pair, gate: Gate) -> None:
    gate.open.clear()
    pair.hand_over("t")
    assert gate.reached.wait(WAIT_S)
    sender = pair.prefill.endpoint.sender
    sender.abort("t", "the request ended")
    wait_until(lambda: sender.let_go("t"))
    pair.overwrite()
    gate.open.set()
    pair.decode.wait_finished("t")
    assert pair.decode.bad == set(TARGET)
    assert pair.decode.endpoint.receiver.quarantine.mismatches == 0


def test_without_memory_to_copy_them_out_blocks_are_given_back_and_the_peer_recomputes(
    make_side: MakeSide, gate: Gate
) -> None:
    pair = Pair(make_side, gate, staging_bytes=LAYERS * CHUNK_BYTES)
    pool = pair.prefill.endpoint._pool
    segment = pool.take((LAYERS - 1) * CHUNK_BYTES)
    assert segment is not None
    gate.open.clear()
    pair.hand_over("t")
    assert gate.reached.wait(WAIT_S)
    pair.prefill.endpoint.sender.call_back("t")
    pair.overwrite()
    gate.open.set()
    pair.decode.wait_finished("t")
    assert pair.decode.bad == set(TARGET)
    assert pair.decode.endpoint.receiver.quarantine.mismatches == 0
    pool.give_back(segment)


def test_a_transport_that_cannot_read_the_cache_gets_copies(make_side: MakeSide) -> None:
    prefill, decode = (make_side(shape=SHAPE, seed=seed) for seed in (1, 2))
    for name, left_out in (("a", frozenset[str]()), ("b", frozenset({"shm"})), ("c", frozenset({"shm", "tcp"}))):
        done = threading.Event()
        prefill.endpoint._loop.call_soon_threadsafe(lambda: (prefill.endpoint._ways.leave_out(left_out), done.set()))  # noqa: B023
        assert done.wait(WAIT_S)
        decode.expect(name, TARGET)
        prefill.offer(decode.address, name, len(SOURCE))
        prefill.send_all(name, SOURCE, stays=True)
        decode.wait_finished(name)
        assert not decode.bad
        for layer, cache in prefill.cache.items():
            assert torch.equal(decode.cache[layer][TARGET], cache[SOURCE])
            decode.cache[layer].zero_()
        wait_until(prefill.idle)
