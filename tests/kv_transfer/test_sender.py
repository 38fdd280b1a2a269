"""What the engine thread may do while the KV thread ends a hand-over."""

from __future__ import annotations

import asyncio
import gc

from tests.support.kv_side import WAIT_S, MakeSide, wait_until


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
    prefill, decode = make_side(seed=1, group_bytes=200), make_side(seed=2)
    layer_bytes = 2 * prefill.endpoint.io.block_bytes
    decode.expect("t", [2, 0])
    prefill.offer(decode.address, "t", 2)
    wait_until(lambda: (known := decode.endpoint.receiver._expected.get("t")) is not None and known.landing)
    prefill.put("t", 0, 0, [5, 1])
    assert decode.endpoint.receiver.bytes_landed == 0
    prefill.put("t", 1, 0, [5, 1])  # two layers with their headers are more than a group
    wait_until(lambda: decode.endpoint.receiver.bytes_landed == 2 * layer_bytes)
    prefill.put("t", 2, 0, [5, 1])
    prefill.endpoint.sender.finish("t")
    decode.wait_finished("t")
    assert decode.bad == set()


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
