"""Who knows the token is admitted on both sides, nobody else is, and the token is never said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import WorkerLost
from core.handshake import MAGIC, REQUEST_BYTES, VERDICT_BYTES, Refused, RouterHandshake, WorkerHandshake

tokens = st.text(min_size=1, max_size=40)


def talk(worker: WorkerHandshake, router: RouterHandshake) -> bytes:
    """Let both ends speak until they know each other; return all that was said."""
    greeting = worker.opening()
    request = router.opening() + router.take(greeting)
    verdict = worker.take(request)
    assert router.take(verdict) == b""
    assert worker.needed == router.needed == 0
    return greeting + request + verdict


@given(tokens)
def test_equal_tokens_are_admitted_and_stay_secret(token: str) -> None:
    said = [talk(WorkerHandshake(token), RouterHandshake(token)) for _ in range(2)]
    assert said[0] != said[1]
    assert len(token) < 4 or all(token.encode() not in each for each in said)


@given(tokens, st.text(max_size=40))
def test_router_without_the_token_is_refused_and_told(token: str, other: str) -> None:
    if token == other:
        return
    worker, router = WorkerHandshake(token), RouterHandshake(other)
    with pytest.raises(Refused, match="missing or wrong") as caught:
        worker.take(router.opening() + router.take(worker.opening()))
    assert worker.needed == REQUEST_BYTES
    with pytest.raises(Refused, match="missing or wrong"):
        router.take(caught.value.reply)


def test_worker_without_the_token_is_refused() -> None:
    for impostor in (WorkerHandshake(""), WorkerHandshake("guess")):
        router = RouterHandshake("secret")
        request = router.opening() + router.take(impostor.opening())
        impostor._token = ""  # it admits everyone, to hear what they say
        with pytest.raises(Refused, match="does not know"):
            router.take(impostor.take(request))
        assert router.needed == VERDICT_BYTES


def test_cluster_without_token_admits_everyone() -> None:
    talk(WorkerHandshake(""), RouterHandshake(""))


def test_proof_is_good_for_one_connection() -> None:
    first, router = WorkerHandshake("secret"), RouterHandshake("secret")
    overheard = router.opening() + router.take(first.opening())
    assert len(overheard) == REQUEST_BYTES
    with pytest.raises(Refused):
        WorkerHandshake("secret").take(overheard)


def test_proof_of_one_end_is_none_of_the_other() -> None:
    """A peer that sends each end's own words back to it stays a stranger."""
    worker, router = WorkerHandshake("secret"), RouterHandshake("secret")
    request = router.take(worker.opening())
    with pytest.raises(Refused):
        router.take(b"\x01" + request[-32:])


@given(st.binary(min_size=REQUEST_BYTES, max_size=REQUEST_BYTES))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(Refused):
        WorkerHandshake("secret").take(noise)
    with pytest.raises(Refused, match="does not speak"):
        WorkerHandshake("").take(b"GET / HTTP/1.1\r\n".ljust(REQUEST_BYTES))
    if not noise.startswith(MAGIC):
        with pytest.raises(WorkerLost, match="no worker"):
            RouterHandshake("secret").take(noise[:40])
