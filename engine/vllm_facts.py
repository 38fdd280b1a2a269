"""What vLLM measured of each request, read from its output processor as the request's first token passes.

Owns the two methods of vLLM's OutputProcessor that it listens to (0.32, v1/engine/output_processor.py), and the
matching of requests to the calls they were made for. Must not know HTTP or sinks.

Matching goes by context, not by name: the application answers a call in tasks that inherit the context of `watch`, and
names of requests are the callers' own, so two calls may have the same. Between first tokens the listening costs a
function call a step.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from core.types import LegFacts
from kv_transfer.receive_times import read_times

logger = logging.getLogger(__name__)


class WatchedCall:
    """One call, and what is known of its only request."""

    __slots__ = ("facts", "names")

    def __init__(self) -> None:
        self.names: list[str] = []  # the engine's own names of the requests made for this call
        self.facts: LegFacts | None = None  # None before the first token, and for a call of several sequences


class FactsReader:
    """Listens to one output processor; every call is made from the event loop."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._call: ContextVar[WatchedCall | None] = ContextVar("watched call", default=None)
        # All and only the requests of watched calls that have no token yet, by the engine's own name: call, vLLM's
        # state of the request, and when it was given to the engine.
        self._awaited: dict[str, tuple[WatchedCall, Any, float]] = {}
        # All and only those that have one, of KV that was handed over, and that have not ended.
        self._received: dict[str, tuple[WatchedCall, float]] = {}
        self._add, self._process = processor.add_request, processor.process_outputs
        processor.add_request, processor.process_outputs = self._add_request, self._process_outputs

    @contextlib.contextmanager
    def watch(self) -> Iterator[WatchedCall]:
        """Collect the facts of the requests that are made in this context."""
        call = WatchedCall()
        token = self._call.set(call)
        try:
            yield call
        finally:
            self._call.reset(token)
            for name in call.names:
                self._awaited.pop(name, None)
                self._received.pop(name, None)

    def _add_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._add(request, *args, **kwargs)
        if (call := self._call.get()) is not None:
            try:
                self._await(call, request.request_id)
            except Exception:  # the boundary between measuring and serving
                logger.exception("request %s is not measured", request.request_id)

    def _await(self, call: WatchedCall, name: str) -> None:
        call.names.append(name)
        if len(call.names) == 1:
            self._awaited[name] = (call, self._processor.request_states[name], time.monotonic())
        else:  # several prompts, n > 1 or beam search: they have no times in common
            call.facts = None
            self._awaited.pop(call.names[0], None)

    def _process_outputs(self, outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        last = [output for output in outputs if getattr(output, "kv_transfer_params", None) is not None]
        received = [(output.request_id, times) for output in last if (times := read_times(output.kv_transfer_params))]
        for output in last:
            output.kv_transfer_params = None  # of no concern to the client, whom vLLM would tell
        processed = self._process(outputs, *args, **kwargs)
        if self._awaited or received:
            try:
                self._take_first_tokens(outputs)
                self._take_times(received)
            except Exception:  # the boundary between measuring and serving
                logger.exception("first tokens are not measured")
        return processed

    def _take_first_tokens(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            if (awaited := self._awaited.pop(output.request_id, None)) is not None:
                call, state, given_s = awaited
                call.facts = facts_of(output, state, given_s)
                if call.facts is not None and call.facts.received_tokens:
                    self._received[output.request_id] = call, given_s

    def _take_times(self, received: Sequence[tuple[str, tuple[float, float]]]) -> None:
        for name, (blocks_s, landed_s) in received:
            call, given_s = self._received.pop(name, (None, 0.0))
            if call is not None and call.facts is not None:
                call.facts = call.facts._replace(
                    blocks_s=max(0.0, blocks_s - given_s), landed_s=max(0.0, landed_s - given_s)
                )


def facts_of(output: Any, state: Any, given_s: float) -> LegFacts | None:
    """Read what vLLM knows once a request's first output was processed; None if that output brings no token.

    `given_s` is when the front gave the request to the engine core. Both use the machine's monotonic clock. vLLM's own
    queue time begins later, when the core takes the request in between two steps.
    """
    origin, stats = getattr(output, "prefill_stats", None), state.stats
    if origin is None or stats is None or not (output.new_token_ids or output.pooling_output is not None):
        return None
    return LegFacts(
        prompt_tokens=state.prompt_len,
        cached_tokens=origin.num_local_cached_tokens,
        received_tokens=origin.num_external_cached_tokens,
        queued_s=max(0.0, stats.scheduled_ts - given_s),
        prefill_s=max(0.0, stats.first_token_ts - stats.scheduled_ts),
    )
