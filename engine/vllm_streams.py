"""Streams of vLLM's OpenAI layer as they can go on elsewhere: the tokens their events are made of, made again.

Owns the calls of AsyncLLM and its OutputProcessor that are wrapped for it (vLLM 0.32), the ids that follow from a
request, and which requests cannot be resumed. The engine core's side is engine.vllm_resume. Must not know HTTP.

A stream is made again by the code that made it: the tokens go through vLLM's output processor in the groups in which
they were rendered, so that detokenizer, stop strings and parsers come to the state they had, and the OpenAI layer
writes the same events. Matching of requests to calls goes by context, as in engine.vllm_facts.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
from collections.abc import AsyncGenerator, Iterator
from contextvars import ContextVar
from copy import copy
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_64_hexdigest

from core.engine import RESUMED_TOKENS, HttpCall, ReplySink, Resume
from core.errors import ResumeFailed
from engine.vllm_args import WORKER_EXTENSION
from engine.vllm_scheduler import FACTORY

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# A stream is made again much faster than it was; others must have their turn meanwhile.
_OUTPUTS_PER_TURN: Final = 8
RESUMING_VERSIONS: Final = ("0.32.",)  # what engine.vllm_resume wraps is written against these
_CREATED: Final = re.compile(rb'"created":([0-9]+)')


class Stream:
    """One call and what its client has of the answer."""

    __slots__ = ("_made_up", "_nonce", "_renamed", "_sink", "refused", "replayed", "resume")

    def __init__(self, call: HttpCall, sink: ReplySink) -> None:
        self._sink = sink
        self._nonce = call.nonce
        self._made_up = 0
        self._renamed: tuple[bytes, bytes] | None = None  # its time of creation as written here, and as it was
        self.resume: Resume | None = call.resume
        self.replayed: list[Any] = []  # outputs made again and not rendered yet
        self.refused = ""  # why it cannot be resumed here

    def tell(self, output: Any) -> None:
        """Tell the tokens of an output that is about to be rendered; those that end a stream are made again instead."""
        (completion,) = output.outputs
        if completion.token_ids and not output.finished:
            self._sink.tokens(completion.token_ids)

    def new_id(self) -> str | None:
        """Make up an id as vLLM would, but the same wherever the request runs; None: let vLLM do it."""
        if not self._nonce:
            return None
        self._made_up += 1
        return xxh3_64_hexdigest(f"{self._nonce}:{self._made_up}".encode())

    def as_before(self, data: bytes) -> bytes:
        """Write the time of creation that the stream had. No text can look like it, for its quotes are escaped."""
        if self.resume is None or not self.resume.created:
            return data
        if self._renamed is None:
            found = _CREATED.search(data)
            if found is None:
                return data
            self._renamed = found[0], b'"created":%d' % self.resume.created
        return data.replace(*self._renamed)


class Streams:
    """Listens to one AsyncLLM; make it before anything else wraps its output processor. From the event loop only."""

    def __init__(self, client: AsyncLLM, *, can_resume: bool) -> None:
        """Take the engine; `can_resume` says whether its scheduler takes resumed requests."""
        self._config = client.vllm_config
        self._can_resume = can_resume
        self._processor = client.output_processor
        self._stream: ContextVar[Stream | None] = ContextVar("stream", default=None)
        self._generate, self._add = client.generate, self._processor.add_request
        self._process = self._processor.process_outputs
        client.generate = self.generate
        self._processor.add_request = self._add_request
        self._steady_ids()

    @contextlib.contextmanager
    def watch(self, call: HttpCall, sink: ReplySink) -> Iterator[Stream]:
        """Follow the request that is made in this context."""
        stream = Stream(call, sink)
        token = self._stream.set(stream)
        try:
            yield stream
        finally:
            self._stream.reset(token)

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **settings: Any
    ) -> AsyncGenerator[Any, None]:
        """Do as AsyncLLM.generate, and tell the tokens of a stream of one sequence."""
        outputs = self._generate(prompt, sampling_params, request_id, **settings)
        stream = self._stream.get()
        return outputs if stream is None or not _is_stream(sampling_params) else _told(stream, outputs)

    def _add_request(self, request: Any, prompt: Any, parent: Any, index: int, queue: Any) -> None:
        params, stream = request.sampling_params, self._stream.get()
        if params is not None and params.extra_args:
            params.extra_args.pop(RESUMED_TOKENS, None)  # nobody's but ours to set
        if stream is None or stream.resume is None or not stream.resume.token_ids:
            self._add(request, prompt, parent, index, queue)
            return
        token_ids = list(stream.resume.token_ids)
        if _is_prefill_leg(params):  # its output is of no use to anybody: all is prompt
            request.prompt_token_ids = [*request.prompt_token_ids, *token_ids]
            self._add(request, prompt, parent, index, queue)
            return
        stream.refused = "n > 1 cannot be resumed" if parent is not None else self._obstacle(request, token_ids)
        if stream.refused:
            raise ResumeFailed(stream.refused)
        params.extra_args = {**(params.extra_args or {}), RESUMED_TOKENS: token_ids}
        self._add(request, prompt, parent, index, queue)
        self._replay(stream, request, queue)

    def _obstacle(self, request: Any, token_ids: list[int]) -> str:
        """Say why a request cannot go on here exactly as it began; empty if it can."""
        params, config = request.sampling_params, self._config
        vocab_size = config.model_config.get_vocab_size()
        num_known = len(request.prompt_token_ids or ()) + len(token_ids)
        obstacles = {
            "this engine's scheduler or version does not resume": not self._can_resume,
            "an answer in one piece": not _is_stream(params),
            "log probabilities of the prompt": params.prompt_logprobs is not None,
            "thinking_token_budget": params.thinking_token_budget is not None,
            "a prompt that is not text": request.prompt_token_ids is None or bool(request.mm_features),
            "a seed with speculative decoding": params.seed is not None and config.speculative_config is not None,
            "a grammar behind a reasoning parser": params.structured_outputs is not None
            and bool(config.structured_outputs_config.reasoning_parser),
            "tokens that the model does not have": max(token_ids) >= vocab_size,
            "more tokens than may be made": num_known >= config.model_config.max_model_len
            or len(token_ids) >= params.max_tokens,
        }
        found = [name for name, is_there in obstacles.items() if is_there]
        return f"a stream cannot be resumed with {found[0]}" if found else ""

    def _replay(self, stream: Stream, request: Any, queue: Any) -> None:
        """Make what the client has again, output by output; the engine core does not know of the request yet."""
        assert stream.resume is not None
        state = self._processor.request_states[request.request_id]
        make = importlib.import_module("vllm.v1.engine").EngineCoreOutput
        has_logprobs = request.sampling_params.num_logprobs is not None
        for group in stream.resume.groups():
            logprobs = _no_logprobs(group) if has_logprobs else None
            self._process([make(request_id=request.request_id, new_token_ids=group, new_logprobs=logprobs)])
            if (output := queue.get_nowait()) is not None:
                stream.replayed.append(output)
        if request.request_id not in self._processor.request_states:
            stream.refused = "what was sent ends the stream, by this engine's rules"
            raise ResumeFailed(stream.refused)
        state.is_prefilling = True  # for vLLM's statistics, its first token is still to come
        if stream.replayed:
            wake = copy(stream.replayed[-1])
            wake.outputs = []
            queue.put(wake)  # begin to render now, not when there is a new token

    def _steady_ids(self) -> None:
        """Have the ids of tool calls follow from the request, so that they are the same when made again."""
        module: Any = importlib.import_module("vllm.renderers.chat_utils")
        random_uuid = module.random_uuid

        def made_up() -> str:
            stream = self._stream.get()
            return (None if stream is None else stream.new_id()) or random_uuid()

        module.random_uuid = made_up


def can_resume(config: Any) -> bool:
    """Whether an engine of this configuration takes resumed requests: the scheduler is ours, and this vLLM known."""
    version = str(importlib.import_module("vllm").__version__)
    own = FACTORY.rpartition(".")[2]
    scheduler, extension = config.scheduler_config.scheduler_cls, config.parallel_config.worker_extension_cls
    is_ours = getattr(scheduler, "__name__", str(scheduler)).endswith(own) and extension == WORKER_EXTENSION
    return is_ours and version.startswith(RESUMING_VERSIONS)


async def _told(stream: Stream, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Pass outputs on, those made again first."""
    async with contextlib.aclosing(outputs):
        async for output in outputs:
            if stream.replayed:
                replayed, stream.replayed = stream.replayed, []
                for index, known in enumerate(replayed, 1):
                    yield known
                    if not index % _OUTPUTS_PER_TURN:
                        await asyncio.sleep(0)
            if output.outputs:
                stream.tell(output)
                yield output


def _is_stream(params: Any) -> bool:
    """Whether a request is answered as it is made, in one sequence."""
    return getattr(params, "n", 0) == 1 and getattr(params.output_kind, "name", "") == "DELTA"


def _is_prefill_leg(params: Any) -> bool:
    transfer = (params.extra_args or {}).get("kv_transfer_params")
    return bool(transfer and transfer.get("do_remote_decode"))


def _no_logprobs(token_ids: list[int]) -> Any:
    """Stand in for the log probabilities of tokens that another engine made; they are not sent again."""
    import numpy as np

    make = importlib.import_module("vllm.v1.outputs").LogprobsLists
    ids = np.array(token_ids, dtype=np.int32).reshape(-1, 1)
    return make(ids, np.zeros(ids.shape, dtype=np.float32), np.ones(len(token_ids), dtype=np.int32))
