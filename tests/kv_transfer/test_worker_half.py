"""Two engine ranks that do what the scheduler planned, step by step.

Invariants: a finished request whose blocks the engine holds is given back once, and not before nobody reads them; what
a step may overwrite is copied before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kv_transfer.plan import ReceiveOpen, ReceiveParams, SendHold, SendOpen, SendParams, SendRange, StepPlan
from kv_transfer.worker_half import WorkerHalf
from tests.support.kv_side import wait_until

LAYERS = ("layer.0", "layer.1")
IDS = (3, 1, 7)
IDLE = StepPlan()


class Rank:
    """One engine rank with its cache."""

    def __init__(self, run_dir: Path, name: str, *, holds_blocks: bool = True) -> None:
        self.cache = {layer: torch.randint(0, 255, (16, 4096), dtype=torch.uint8) for layer in LAYERS}
        extra = {
            "worker_id": name,
            "epoch": 1,
            "host": "127.0.0.1",
            "endpoint_file": str(run_dir / name),
            "fingerprint": "f",
            "transport": "shm",
            "staging_bytes": 1 << 20,
        }
        self.half = WorkerHalf(self.cache, extra, 0, holds_blocks=holds_blocks)
        self.sender = self.half.endpoint.sender
        self.received: set[str] = set()
        self.given_back: list[str] = []

    @property
    def address(self) -> str:
        return self.half.endpoint._addresses["grpc"]

    def step(self, plan: StepPlan = IDLE) -> None:
        """Do what the connector has the worker half do in a step."""
        self.half.call_back(plan)
        self.half.begin_step(plan)
        for layer in LAYERS:
            self.half.save_layer(layer)
        self.half.end_step()
        self.received |= self.half.take_finished()
        self.given_back += self.half.take_unread()

    def send(self, peer: str, transfer_id: str, *, is_final: bool = True) -> None:
        """Compute a prompt in one step."""
        opened = SendOpen(SendParams(transfer_id, peer, 30.0), f"r-{transfer_id}", "d", len(IDS))
        part = SendRange(transfer_id, 0, IDS, last=True, is_final=is_final)
        self.step(StepPlan(send_opens=(opened,), send_ranges=(part,), computes=True))

    def receive(self, transfer_id: str) -> None:
        """Reserve the blocks for one."""
        params = ReceiveParams(transfer_id, 30.0)
        self.step(StepPlan(receive_opens=(ReceiveOpen(params, f"r-{transfer_id}", "d", 0, len(IDS), IDS),)))

    def close(self) -> None:
        self.half.endpoint.close()
        self.half.endpoint.io.close()

    def hold(self, transfer_id: str) -> None:
        """Finish the request, whose blocks the scheduler keeps."""
        self.step(StepPlan(send_holds=(SendHold(f"r-{transfer_id}", transfer_id),)))


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[tuple[Rank, Rank]]:
    """A prefill rank that knows its decode rank: what it sends next stays in the cache."""
    prefill, decode = Rank(tmp_path, "p"), Rank(tmp_path, "d")
    decode.receive("first")
    prefill.send(decode.address, "first")
    _landed(prefill, decode, "first")
    yield prefill, decode
    for rank in (prefill, decode):
        assert rank.half.endpoint.ledger.imbalances == 0
        rank.close()


def _landed(prefill: Rank, decode: Rank, name: str, was: dict[str, torch.Tensor] | None = None) -> None:
    wait_until(lambda: (decode.step(), f"r-{name}" in decode.received)[1])
    for layer, cache in (was or prefill.cache).items():
        assert torch.equal(decode.cache[layer][list(IDS)], cache[list(IDS)])
    assert not decode.half.take_bad_blocks()


def test_blocks_are_given_back_once_when_they_have_landed(
    ranks: tuple[Rank, Rank], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = ranks
    monkeypatch.setattr("kv_transfer.sender.HOLD_S", 30.0)
    prefill.send(decode.address, "t")  # decode reserves nothing yet
    assert prefill.sender.cached_bytes == len(LAYERS) * len(IDS) * 4096
    prefill.hold("t")
    assert prefill.given_back == []
    decode.receive("t")
    wait_until(lambda: (prefill.step(), bool(prefill.given_back))[1])
    _landed(prefill, decode, "t")
    prefill.step()
    assert prefill.given_back == ["r-t"]


def test_a_hand_over_that_is_over_holds_nothing(ranks: tuple[Rank, Rank]) -> None:
    prefill, _ = ranks
    prefill.hold("first")
    prefill.hold("never-begun")
    assert prefill.given_back == ["r-first", "r-never-begun"]


def test_a_step_that_may_overwrite_blocks_finds_them_copied(ranks: tuple[Rank, Rank]) -> None:
    prefill, decode = ranks
    prefill.send(decode.address, "t")
    prefill.step(StepPlan(send_call_backs=("t",)))
    assert prefill.sender.cached_bytes == 0
    was = {layer: cache.clone() for layer, cache in prefill.cache.items()}
    for cache in prefill.cache.values():
        cache[list(IDS)] = 0
    decode.receive("t")
    _landed(prefill, decode, "t", was)


def test_blocks_that_will_be_written_again_are_copied_at_once(ranks: tuple[Rank, Rank]) -> None:
    prefill, decode = ranks
    prefill.send(decode.address, "t", is_final=False)
    assert prefill.sender.cached_bytes == 0
    decode.receive("t")
    _landed(prefill, decode, "t")


def test_an_engine_that_holds_no_blocks_has_none_read(tmp_path: Path) -> None:
    prefill, decode = Rank(tmp_path, "p", holds_blocks=False), Rank(tmp_path, "d")
    for name in ("a", "b"):
        decode.receive(name)
        prefill.send(decode.address, name)
        assert prefill.sender.cached_bytes == 0
        _landed(prefill, decode, name)
    for rank in (prefill, decode):
        rank.close()
