"""What clients see when something breaks, and that nothing stays behind.

Every test ends with both workers holding no block and balanced ledgers; those that kill a worker start it again.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from cluster import launch
from core.types import Role
from tests.integration.test_parity import COMPLETIONS, completion
from tests.support.openai_http import Json, assert_same, post, stream, strip
from tests.support.stack import Stack

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def nothing_held(stack: Stack) -> Iterator[None]:
    yield
    stack.revive()  # a failed test must not leave the next one without a worker
    stack.assert_nothing_held()


@contextmanager
def opened_stream(stack: Stack, body: Json, events: int) -> Iterator[Iterator[str]]:
    """Open a stream, read so many of its events and yield the lines to come; leaving the block closes it."""
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", stack.url + COMPLETIONS, json={**body, "stream": True}) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        for _ in range(2 * events):  # an event and the blank line after it
            next(lines)
        yield lines


def assert_same_as_one_pool(stack: Stack, body: Json, ours: tuple[int, Json]) -> None:
    status, answer = ours
    assert status == 200, answer
    assert_same(strip(answer), strip(post(stack.one_pool_url, COMPLETIONS, body)[1]))


def test_client_that_leaves_in_mid_stream_frees_both_pools(stack: Stack) -> None:
    with opened_stream(stack, completion(200, of=200, max_tokens=2000, ignore_eos=True), events=5):
        assert stack.state("decode-0").kv_blocks_used > 0
    stack.wait(lambda: stack.state("decode-0").kv_blocks_used == 0, timeout_s=2)
    stack.wait(lambda: stack.state("prefill-0").kv_blocks_used == 0, timeout_s=2)


def test_client_that_leaves_during_prefill_frees_both_pools(stack: Stack) -> None:
    body = completion(3500, of=201, max_tokens=500)
    with httpx.Client(timeout=60) as client, pytest.raises(httpx.ReadTimeout):
        client.post(stack.url + COMPLETIONS, json=body, timeout=httpx.Timeout(60, read=0.15))
    stack.wait(lambda: stack.state("decode-0").kv_blocks_used == 0, timeout_s=3)
    stack.wait(lambda: stack.state("prefill-0").kv_blocks_used == 0, timeout_s=3)
    assert stack.kv_stats("prefill-0")["staged_bytes"] == 0


def test_a_hundred_clients_that_leave_at_any_time(stack: Stack) -> None:
    def leave(i: int) -> None:
        body = completion(20 + 37 * (i % 40), of=300 + i, max_tokens=200, ignore_eos=True, stream=bool(i % 3))
        try:
            httpx.post(stack.url + COMPLETIONS, json=body, timeout=httpx.Timeout(60, read=0.02 + 0.01 * (i % 17)))
        except httpx.ReadTimeout:
            return

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(leave, range(100)))
    stack.assert_nothing_held()
    body = completion(100, of=299)
    assert_same_as_one_pool(stack, body, post(stack.url, COMPLETIONS, body))


@pytest.mark.parametrize("fault", ["drop_layer", "corrupt_layer"])
def test_lost_or_corrupt_frame_is_recomputed(stack: Stack, fault: str) -> None:
    failed = stack.kv_stats("decode-0")["receives"]["failed"]
    body = completion(700, of=210 + len(fault))
    stack.inject({fault: 2})
    try:
        ours = post(stack.url, COMPLETIONS, body)
    finally:
        stack.inject({})
    assert stack.kv_stats("decode-0")["receives"]["failed"] == failed + 1
    assert_same_as_one_pool(stack, body, ours)


def test_hand_over_that_never_comes_is_recomputed_after_its_lease(stack: Stack) -> None:
    expired = stack.kv_stats("decode-0")["blocks"]["expired"]
    body = completion(200, of=220)
    stack.inject({"never_offer": 1})
    try:
        ours = post(stack.url, COMPLETIONS, body)
    finally:
        stack.inject({})
    assert stack.kv_stats("decode-0")["blocks"]["expired"] > expired
    assert_same_as_one_pool(stack, body, ours)


def test_prefill_killed_in_mid_prefill_is_not_noticed_by_the_client(stack: Stack) -> None:
    body = completion(3500, of=230)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, stack.url, COMPLETIONS, body)
        stack.wait(lambda: stack.kv_stats("decode-0")["leases"])
        stack.kill("prefill-0")
        assert_same_as_one_pool(stack, body, answer.result(60))
    alone = completion(300, of=231)
    assert_same_as_one_pool(stack, alone, post(stack.url, COMPLETIONS, alone))  # decode serves alone
    stack.revive()
    before = stack.landed()
    assert post(stack.url, COMPLETIONS, completion(300, of=232))[0] == 200
    assert stack.landed() == before + 1


def test_decode_killed_in_mid_stream_ends_what_cannot_be_resumed_with_a_clear_error(stack: Stack) -> None:
    body = completion(100, of=240, max_tokens=3000, ignore_eos=True, n=2) | {"temperature": 1.0}
    with opened_stream(stack, body, events=5) as lines:
        stack.kill("decode-0")
        last = [line for line in lines if line][-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "worker_lost"
    assert "decode-0" in error["message"]
    alone = completion(300, of=241)
    assert_same_as_one_pool(stack, alone, post(stack.url, COMPLETIONS, alone))  # prefill serves alone
    stack.revive()
    before = stack.landed()
    assert post(stack.url, COMPLETIONS, completion(300, of=242))[0] == 200
    assert stack.landed() == before + 1


def test_decode_killed_before_the_first_token_is_not_noticed_by_the_client(stack: Stack) -> None:
    body = completion(3500, of=250)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream, stack.url, COMPLETIONS, body)
        stack.wait(lambda: stack.kv_stats("decode-0")["leases"])
        stack.kill("decode-0")
        ours = answer.result(60)
    expected = stream(stack.one_pool_url, COMPLETIONS, body)
    stack.revive()
    assert (ours.errors, ours.done) == ([], True)
    assert_same(ours.choices, expected.choices)


def test_an_engine_core_that_stands_still_for_good_ends_its_worker(stack: Stack) -> None:
    process = stack.workers["prefill-0"]
    body = completion(3500, of=260)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, stack.url, COMPLETIONS, body)
        stack.wait(lambda: stack.kv_stats("decode-0")["leases"])
        stack.signal_engine("prefill-0", signal.SIGSTOP)
        assert_same_as_one_pool(stack, body, answer.result(60))
    stack.wait(lambda: not process.tree_pids(), timeout_s=60)
    assert "the engine core stood still for 10 s" in process.failure
    stack.revive()


def test_a_worker_whose_clock_is_days_ahead_is_served_and_handed_over_to(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that were switched on at other times have other monotonic clocks; no time of one may reach another."""
    skewed = ("unshare", "--time", "--monotonic", "1000000", "--boottime", "1000000")
    if subprocess.run([*skewed, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs root and time namespaces")
    plain = launch._command
    with monkeypatch.context() as patched:
        patched.setattr(launch, "_command", lambda *words, **flags: [*skewed, *plain(*words, **flags)])
        stack.add_worker("decode-1", Role.DECODE)
    try:
        bodies = [completion(300, of=270 + number) for number in range(24)]
        with ThreadPoolExecutor(8) as pool:  # one at a time, all would go to the first of two idle workers
            answers = list(pool.map(lambda body: post(stack.url, COMPLETIONS, body), bodies))
        for body, answer in zip(bodies, answers, strict=True):
            assert_same_as_one_pool(stack, body, answer)
        assert stack.kv_stats("decode-1")["receives"]["landed"] >= 1
        assert stack.kv_stats("decode-1")["receives"]["failed"] == 0
        stack.assert_nothing_held("decode-1")
    finally:
        stack.remove_worker("decode-1")


def test_huge_body_is_refused_and_leaves_nothing(stack: Stack) -> None:
    body = b'{"model": "demo", "prompt": "' + b"x" * (100 << 20) + b'"}'
    response = httpx.post(stack.url + COMPLETIONS, content=body, timeout=60)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == 413


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff\xfe", b"null", b""], ids=repr)
def test_bad_json_is_a_clear_400(stack: Stack, body: bytes) -> None:
    response = httpx.post(stack.url + COMPLETIONS, content=body, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
