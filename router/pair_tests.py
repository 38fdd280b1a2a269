"""Self-tests of new pairs of workers, run beside requests: the same greedy prompts through a pair and through its
decode worker alone.

Owns how a test is run and when one is begun. What a pair is asked and how its answers are judged is
core.policy.parity's, which pairs are to be tested core.policy.pair_trust's. Must not place requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from http import HTTPStatus
from time import monotonic
from typing import Any, Final

from cluster.pool import WorkerPool
from cluster.reply import Reply
from cluster.session_client import WorkerSession
from core.engine import HttpCall
from core.errors import BatonError, KVTransferError, NoWorker, WorkerLost
from core.policy.pair_trust import Pair, PairTrust
from core.policy.parity import NUM_LOGPROBS, NUM_TOKENS, Answer, disagreement, prompts_of
from core.types import Handover, Leg
from router.ids import SecretIds

TEST_S: Final = 20.0  # for one test; it takes tens of milliseconds where nothing else runs
MAX_TESTS: Final = 4  # at a time
_LOOK_S: Final = 0.1  # least time between two looks at the workers, which change with every step
_IDLE_S: Final = 60.0  # longest time between two
_JSON: Final = (("content-type", "application/json"),)

log = logging.getLogger(__name__)


class PairTests:
    """Keeps a PairTrust up to date: with who is there, what they report, and what tests say."""

    def __init__(self, pool: WorkerPool, trust: PairTrust, *, lease_s: float) -> None:
        self._pool = pool
        self._trust = trust
        self._lease_s = min(lease_s, TEST_S)
        self._ids = SecretIds()
        self._running: set[asyncio.Task[None]] = set()  # all and only tests that run

    async def keep_testing(self) -> None:
        """Follow the workers until cancelled."""
        try:
            while True:
                self._look()
                next_s = self._trust.next_due_s()
                idle_s = _IDLE_S if next_s is None else max(_LOOK_S, min(_IDLE_S, next_s - monotonic()))
                if await self._pool.wait_changed(idle_s):
                    self._trust.follow(self._pool.view().workers, monotonic())
                    await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _look(self) -> None:
        now_s = monotonic()
        self._trust.follow(self._pool.view().workers, now_s)
        for pair in self._trust.due(now_s, limit=MAX_TESTS):
            task = asyncio.create_task(self._test(pair, self._trust.began(pair)), name=f"pair-{pair.prefill}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _test(self, pair: Pair, epochs: tuple[int, int]) -> None:
        began_s = monotonic()
        reason = "the test was broken off"
        try:
            async with asyncio.timeout(TEST_S):
                reason = await self._outcome(pair)
        except TimeoutError:
            reason = f"the self-test took more than {TEST_S:g} s"
        except BatonError as exc:
            reason = f"the self-test failed: {exc.name}: {exc}"
        except Exception as exc:  # the boundary of a task that nobody waits for
            log.exception("the self-test of %s with %s failed", pair.prefill, pair.decode)
            reason = f"the self-test failed: {type(exc).__name__}"
        finally:
            self._trust.ended(pair, epochs, reason, monotonic())
        if reason:
            log.warning("%s does not hand over to %s: %s", pair.prefill, pair.decode, reason)
        else:
            log.info("%s hands over to %s (tested in %.2f s)", pair.prefill, pair.decode, monotonic() - began_s)

    async def _outcome(self, pair: Pair) -> str:
        """Run all prompts both ways, the pair first; return why the two disagree."""
        prefill, decode = self._session(pair.prefill), self._session(pair.decode)
        hello = decode.hello
        seed = f"{pair}{prefill.record.epoch}{decode.record.epoch}"
        prompts = prompts_of(hello.fingerprint.block_size, hello.max_model_len, seed)
        alone = await asyncio.gather(*(self._alone(decode, prompt) for prompt in prompts))
        if None in alone:
            log.warning("%s does not answer completions: pairs with it are not tested", pair.decode)
            return ""
        paired = await asyncio.gather(*(self._paired(prefill, decode, prompt) for prompt in prompts))
        return disagreement([answer for answer in alone if answer is not None], paired)

    def _session(self, worker_id: str) -> WorkerSession:
        session = self._pool.session(worker_id)
        if session is None:
            raise WorkerLost(f"{worker_id} is not connected")
        return session

    async def _alone(self, decode: WorkerSession, prompt: Sequence[int]) -> Answer | None:
        """Answer a prompt by decode alone; None where the model does not complete text."""
        reply = decode.submit(Leg.WHOLE, self._call(decode, prompt), None, prompt_tokens=len(prompt))
        status, body = await _whole(reply)
        return _answer(body) if status == HTTPStatus.OK else None

    async def _paired(self, prefill: WorkerSession, decode: WorkerSession, prompt: Sequence[int]) -> Answer:
        """Answer a prompt by the pair. Raises KVTransferError when no KV came over."""
        handover = Handover(self._ids.new(), decode.hello.kv_address, self._lease_s)
        call = self._call(decode, prompt)
        receiving = decode.submit(Leg.DECODE, call, handover)
        sending = None
        try:
            sending = prefill.submit(Leg.PREFILL, call, handover, prompt_tokens=len(prompt))
            status, body = await _whole(receiving)
            await _whole(sending)
        finally:
            receiving.abort()
            if sending is not None:
                sending.abort()
            decode.cancel_transfer(handover.transfer_id, "the self-test has ended")
        if status != HTTPStatus.OK:
            raise NoWorker(f"the pair answered with status {status}: {body[:200].decode(errors='replace')}")
        if receiving.facts is None or not receiving.facts.received_tokens:
            raise KVTransferError("no KV came over, decode computed the prompt itself; the workers' logs say why")
        return _answer(body)

    def _call(self, worker: WorkerSession, prompt: Sequence[int]) -> HttpCall:
        """Describe a completion that finds nothing in a prefix cache: the salt is of this call alone."""
        name = self._ids.new()
        body = {
            "model": worker.hello.model,
            "prompt": list(prompt),
            "max_tokens": NUM_TOKENS,
            "min_tokens": NUM_TOKENS,
            "temperature": 0,
            "logprobs": NUM_LOGPROBS,
            "return_tokens_as_token_ids": True,
            "cache_salt": name,
        }
        return HttpCall(f"pair-test-{name}", "POST", "/v1/completions", _JSON, json.dumps(body).encode())


async def _whole(reply: Reply) -> tuple[int, bytes]:
    """Read a reply to its end. Raises what the call failed with."""
    status, _ = await reply.head()
    parts = []
    while part := await reply.read():
        parts.append(part)
    return status, b"".join(parts)


def _answer(body: bytes) -> Answer:
    """Read a completion. Raises KVTransferError for one in another form."""
    try:
        logprobs: dict[str, Any] = json.loads(body)["choices"][0]["logprobs"]
        return Answer(tuple(logprobs["tokens"]), tuple(dict(top) for top in logprobs["top_logprobs"]))
    except (ValueError, LookupError, TypeError) as exc:
        raise KVTransferError(f"the answer to a self-test cannot be read: {exc!r}") from exc
