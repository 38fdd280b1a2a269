"""What the engine thread may do while the KV thread ends a hand-over."""

from __future__ import annotations

import asyncio
import gc
import time

import torch

from core.errors import TransferAborted
from kv_transfer.frames import Offer
from kv_transfer.ledger import LeaseLedger
from kv_transfer.sender import Sender
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Outgoing
from tests.support.kv_side import BLOCK_BYTES, LAYERS, WAIT_S, MakeSide, wait_until


class NoWays:
    """Nobody can be reached."""

    async def open(
        self, peer: str, *, attempt: int, failed: frozenset[str], timeout_s: float, num_bytes: int | None = None
    ) -> tuple[str, Outgoing]:
        raise TransferAborted(peer)

    def done(self, peer: str, name: str, num_bytes: int, seconds: float) -> None: ...

    def failed(self, peer: str, name: str) -> None: ...


async def no_withdraw(peer: str, transfer_id: str, reason: str) -> None:
    """Tell nobody."""


def test_hand_over_offered_twice_leaves_nothing_behind(make_side: MakeSide) -> None:
    prefill, decode = make_side(seed=1), make_side(seed=2)
    prefill.offer(decode.address, "t", 2)
    prefill.offer(decode.address, "t", 2)
    prefill.send_all("t", [5, 1])
    decode.expect("t", [2, 0])
    decode.wait_finished("t")
    assert decode.bad == set()
    wait_until(prefill.idle)
    wait_until(lambda: not prefill.endpoint.sender._open)


def test_short_layers_leave_in_groups_and_the_rest_with_the_last(make_side: MakeSide) -> None:
    layer_bytes = 2 * BLOCK_BYTES
    prefill, decode = make_side(seed=1, group_bytes=2 * layer_bytes), make_side(seed=2)
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    wait_until(lambda: (known := decode.endpoint.receiver._expected.get("t")) is not None and known.landing)
    prefill.put("t", 0, 0, [5, 1])
    assert decode.endpoint.receiver.bytes_landed == 0
    prefill.put("t", 1, 0, [5, 1])
    wait_until(lambda: decode.endpoint.receiver.bytes_landed == 2 * layer_bytes)
    prefill.put("t", 2, 0, [5, 1])
    prefill.endpoint.sender.finish("t")
    decode.wait_finished("t")
    assert decode.bad == set()
    assert all(torch.equal(cache[[5, 1]], decode.cache[name][[2, 0]]) for name, cache in prefill.cache.items())


def test_what_a_step_has_staged_leaves_with_it(make_side: MakeSide) -> None:
    prefill, decode = make_side(seed=1, group_bytes=1 << 20), make_side(seed=2)
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    prefill.put("t", 0, 0, [5, 1])
    prefill.endpoint.flush()
    wait_until(lambda: decode.endpoint.receiver.bytes_landed == 2 * BLOCK_BYTES)
    for layer in (1, 2):
        prefill.put("t", layer, 0, [5, 1])
    prefill.endpoint.finish("t")
    decode.wait_finished("t")
    assert decode.bad == set()


def test_acknowledged_frames_leave_the_staging_memory_before_the_hand_over_ends(make_side: MakeSide) -> None:
    prefill, decode = make_side(seed=1), make_side(seed=2)
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    for layer in range(LAYERS):
        prefill.put("t", layer, 0, [5])
    wait_until(lambda: prefill.endpoint.sender.staged_bytes == 0)
    assert not prefill.idle()  # it is still open
    for layer in range(LAYERS):
        prefill.put("t", layer, 1, [1])
    prefill.endpoint.sender.finish("t")
    decode.wait_finished("t")
    assert decode.bad == set()


def test_unacknowledged_frames_stay_until_all_has_landed(make_side: MakeSide) -> None:
    prefill, decode = make_side(seed=1), make_side(seed=2, ack_bytes=1 << 20)
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    prefill.put("t", 0, 0, [5, 1])
    wait_until(lambda: decode.endpoint.receiver.bytes_landed > 0)
    assert prefill.endpoint.sender.staged_bytes > 0
    for layer in range(1, LAYERS):
        prefill.put("t", layer, 0, [5, 1])
    prefill.endpoint.sender.finish("t")
    decode.wait_finished("t")
    wait_until(prefill.idle)


def test_frame_put_when_the_hand_over_has_ended_is_given_back(make_side: MakeSide) -> None:
    prefill, decode = make_side(), make_side()
    sender, io = prefill.endpoint.sender, prefill.endpoint.io
    prefill.offer(decode.address, "t", 2)
    known = sender._open["t"]
    segments = [sender.take("t", io.block_bytes) for _ in range(2)]
    sender.abort("t", "client gone")
    wait_until(lambda: not sender._open)
    for segment in segments:
        assert segment is not None
        sender.put("t", segment, layer=0, first_block=0, num_blocks=1, header=b"")
        assert sender.take("t", io.block_bytes) is None
    assert sender.staged_bytes == 0
    late = prefill.endpoint._pool.take(1)
    assert late is not None
    known.queue.put(late, layer=0, first_block=0, num_blocks=1, header=b"")  # the look came before the end
    assert sender.staged_bytes == 0


def test_broken_stream_leaves_no_error_unread(make_side: MakeSide) -> None:
    prefill, decode = make_side(seed=1), make_side(seed=2)
    unread: list[str] = []
    prefill.endpoint._loop.set_exception_handler(lambda _, context: unread.append(context["message"]))
    for i in range(20):
        decode.expect(f"t{i}", [2, 0])
        prefill.offer(decode.address, f"t{i}", 2)
        prefill.put(f"t{i}", 0, 0, [5, 1])
        decode.endpoint.cancel_receive(f"t{i}")
        prefill.endpoint.sender.abort(f"t{i}", "client gone")
        prefill.put(f"t{i}", 1, 0, [5, 1])
    wait_until(prefill.idle)
    gc.collect()
    done = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), prefill.endpoint._loop)
    done.result(WAIT_S)
    assert unread == []


async def test_hand_over_cancelled_before_its_first_step_releases_its_lease() -> None:
    ledger, pool = LeaseLedger(time.monotonic), StagingPool(1)
    sender = Sender(asyncio.get_running_loop(), NoWays(), no_withdraw, ledger=ledger, pool=pool)
    sender.open(Offer("t", "p", 1, "fp", "d", 1, 1, 8), request_id="r", peer="nowhere", lease_s=WAIT_S)
    segment = sender.take("t", 8)
    assert segment is not None
    sender.put("t", segment, layer=0, first_block=0, num_blocks=1, header=b"")
    await asyncio.ensure_future(sender.close())  # after the hand-over's task is made, before its first step
    await asyncio.sleep(0)
    assert ledger.blocks().granted == 1
    assert ledger.open_leases == ()
    assert sender.staged_bytes == 0
    assert sender.counts == {"sent": 0, "declined": 0, "failed": 1}
    pool.close()
