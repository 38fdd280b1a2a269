"""The real engine: vLLM's AsyncLLM and its OpenAI application in this process, its engine core in a child.

Owns their life. The core is forked where the platform allows, so start this before any thread or gRPC object exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from core.engine import EngineDescription, HttpCall, ReplySink
from core.errors import EngineFailed, KVTransferError, ResumeFailed, StartFailed
from core.types import LegFacts, WorkerState
from core.worker_spec import WorkerSpec
from engine.asgi import AsgiApp, call_asgi
from engine.core_watch import CoreWatch
from engine.process_guard import share_heap_with_fork
from engine.step_state import StepState
from engine.vllm_app import build_openai_app
from engine.vllm_args import parse_flags, serve_flags
from engine.vllm_env import hide_unused_modules, is_cpu_build, keep_front_single_threaded
from engine.vllm_facts import FactsReader
from engine.vllm_identity import connector_config, describe, endpoint_files
from engine.vllm_streams import Stream, Streams, can_resume

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from kv_transfer.control import KVControlClient

logger = logging.getLogger(__name__)

STATS_LOGGER = "vllm.v1.metrics.loggers"
METRICS_PATH = "/metrics"
CONTROL_TIMEOUT_S = 5.0
SENTINEL_WAIT_S = 0.5
WARM_UP_TIMEOUT_S = 300.0
SHUTDOWN_TIMEOUT_S = 10.0

StageCallback = Callable[[str], None]


class VllmEngine:
    """One vLLM replica; made by `start`."""

    def __init__(
        self, client: AsyncLLM, app: AsgiApp, steps: StepState, description: EngineDescription, spec: WorkerSpec
    ) -> None:
        self._client = client
        self._streams = Streams(client, can_resume=can_resume(client.vllm_config))
        self._facts = FactsReader(client.output_processor)
        self._app = app
        self._steps = steps
        self._description = description
        self._token, self._tls = spec.token, spec.tls
        self._step_limit_s = spec.step_limit_s
        self._control: KVControlClient | None = None
        self._closed = False

    @classmethod
    async def start(cls, spec: WorkerSpec, on_stage: StageCallback) -> VllmEngine:
        """Start engine core and application; `on_stage` hears "import", "engine" and "app" as each is done.

        Blocks the event loop while the model loads. Raises ConfigError or StartFailed.
        """
        load_libraries()
        keep_front_single_threaded()
        on_stage("import")
        for file in endpoint_files(spec):
            file.unlink(missing_ok=True)  # that of an earlier life
        args = parse_flags(serve_flags(spec, connector_config(spec)))
        share_heap_with_fork()
        steps = StepState()
        client = _make_client(args, spec, steps)
        try:
            on_stage("engine")
            description = describe(client.vllm_config, args, spec)
            steps.set_blocks(description.num_kv_blocks)
            app = await build_openai_app(client, args)
            await _warm_up(app, spec)
            on_stage("app")
        except BaseException:
            client.shutdown()
            raise
        return cls(client, app, steps, description, spec)

    @property
    def description(self) -> EngineDescription:
        """What is fixed once the engine is up."""
        return self._description

    async def serve(self, call: HttpCall, sink: ReplySink) -> None:
        """Answer one call through vLLM's own OpenAI layer; see core.engine.Engine.

        Nothing that vLLM says of its own death reaches the sink, so that the caller may go on elsewhere.
        """
        if self._client.errored:
            raise EngineFailed("the engine core is dead")
        if call.path.partition("?")[0] == METRICS_PATH:
            await self._serve_metrics(call, sink)
            return
        with self._facts.watch() as watched, self._streams.watch(call, sink) as stream:
            guard = _LiveSink(sink, self._client, stream)
            try:
                await call_asgi(self._app, call, guard)
            except EngineFailed:
                if not guard.dead and not stream.refused:
                    raise
        if stream.refused:
            raise ResumeFailed(stream.refused)
        if guard.dead:
            raise EngineFailed("the engine core died while serving")
        if guard.status == HTTPStatus.OK and watched.facts is not None:
            sink.facts(watched.facts)

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        """Tell the engine core that a hand-over will not come; see core.engine.Engine.

        Raises TimeoutError or a KVTransferError when the core does not answer.
        """
        if (control := self._kv_control()) is not None:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                await control.cancel(transfer_id, reason)

    async def _serve_metrics(self, call: HttpCall, sink: ReplySink) -> None:
        """Answer with vLLM's metrics and, after them, those of the hand-overs, which only the engine core knows."""
        reply = _KeptReply()
        await call_asgi(self._app, call, reply)
        if reply.status == HTTPStatus.OK and (control := self._kv_control()) is not None:
            from kv_transfer.metrics import render

            try:
                async with asyncio.timeout(CONTROL_TIMEOUT_S):
                    reply.data += render(await control.stats()).encode()
            except (TimeoutError, KVTransferError) as exc:
                logger.warning("the engine core did not report its hand-overs: %s", exc)
        sink.start(reply.status, tuple(h for h in reply.headers if h[0].lower() != "content-length"))
        sink.body(bytes(reply.data))

    def _kv_control(self) -> KVControlClient | None:
        """Return the client of this engine's KV endpoint, or None if it hands nothing over."""
        if self._control is None and self._description.kv_address:
            from kv_transfer.control import KVControlClient  # gRPC, which must not be there at the fork

            self._control = KVControlClient(self._description.kv_address, self._token, tls=self._tls)
        return self._control

    def state(self) -> WorkerState:
        """Report the load at the end of the latest step."""
        return self._steps.get()

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` from the event loop after each step that changed the state or made tokens."""
        self._steps.on_step(callback)

    async def failed(self) -> str:
        """Wait until the engine is beyond repair and return why."""
        loop = asyncio.get_running_loop()
        died = asyncio.Event()
        cores = {p.sentinel: p for p in multiprocessing.active_children()}
        for sentinel in cores:
            loop.add_reader(sentinel, died.set)
        watcher = asyncio.create_task(died.wait(), name="engine core sentinel")
        standstill = asyncio.create_task(self._stands_still(list(cores.values())), name="engine core watch")
        handler = self._client.output_handler
        awaited = {watcher, standstill, handler} if handler else {watcher, standstill}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if standstill.done():
                return standstill.result()
        finally:
            watcher.cancel()
            standstill.cancel()
            for sentinel in cores:
                loop.remove_reader(sentinel)
        gone = await asyncio.to_thread(_closed, list(cores))
        # vLLM waits for its processes too; whichever thread is second does not learn the exit code.
        dead = [f"{cores[s].name} ended (exit code {cores[s].exitcode})" for s in gone]
        return ", ".join(dead) or "the engine's output loop ended"

    async def _stands_still(self, cores: Sequence[multiprocessing.process.BaseProcess]) -> str:
        """Wait until the core is given up because it stands still; end it, for it would not end by itself."""
        watch = CoreWatch(
            [core.pid for core in cores if core.pid is not None],
            self._steps,
            has_work=self._client.output_processor.has_unfinished_requests,
            ask=self._client.is_sleeping,
            step_limit_s=self._step_limit_s,
        )
        why = await watch.run()
        for core in cores:
            core.kill()
        return why

    async def close(self) -> None:
        """Stop the engine core; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._control is not None:
            await self._control.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S + 5):
                await asyncio.to_thread(self._client.shutdown, timeout=SHUTDOWN_TIMEOUT_S)


def load_libraries() -> None:
    """Import vLLM as engines here need it; the longest part of a start, and the same whatever the engine is to be."""
    hide_unused_modules()
    importlib.import_module("vllm.v1.engine.async_llm")
    if is_cpu_build():
        importlib.import_module("engine.vllm_cpu").mend_cpu_build()  # imports torch


class _LiveSink:
    """Passes a reply on while the engine lives; what vLLM renders after its death, or of a refusal, is dropped."""

    __slots__ = ("_client", "_sink", "_stream", "dead", "status")

    def __init__(self, sink: ReplySink, client: AsyncLLM, stream: Stream) -> None:
        self._sink = sink
        self._stream = stream
        self._client = client
        self.dead = False
        self.status = 0

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.status = status
        self.dead = self.dead or bool(self._client.errored)
        if not self.dead and not self._stream.refused:
            self._sink.start(status, headers)

    def body(self, data: bytes) -> None:
        self.dead = self.dead or bool(self._client.errored)
        if not self.dead and not self._stream.refused:
            self._sink.body(data if self._stream.resume is None else self._stream.as_before(data))

    def facts(self, facts: LegFacts) -> None:
        self._sink.facts(facts)

    def tokens(self, token_ids: Sequence[int]) -> None:
        self._sink.tokens(token_ids)


def _closed(sentinels: list[int]) -> list[int]:
    """Wait a little until one of the sentinels is ready; return all that are."""
    ready = multiprocessing.connection.wait(sentinels, SENTINEL_WAIT_S)
    return [sentinel for sentinel in sentinels if sentinel in ready]


class _KeptReply:
    """Keeps a whole reply."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: tuple[tuple[str, str], ...] = ()
        self.data = bytearray()

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.status, self.headers = status, headers

    def body(self, data: bytes) -> None:
        self.data += data

    def facts(self, facts: LegFacts) -> None:
        pass

    def tokens(self, token_ids: Sequence[int]) -> None:
        pass


async def _warm_up(app: AsgiApp, spec: WorkerSpec) -> None:
    """Make a few tokens, so that whatever the engine does only once is not the first client's wait."""
    body = {"model": spec.engine.served_model_name, "prompt": "a", "max_tokens": 2, "temperature": 1, "logprobs": 1}
    headers = (("content-type", "application/json"),)
    call = HttpCall("warm-up", "POST", "/v1/completions", headers, json.dumps(body).encode())
    sink = _KeptReply()
    try:
        async with asyncio.timeout(WARM_UP_TIMEOUT_S):
            await call_asgi(app, call, sink)
    except (TimeoutError, EngineFailed) as exc:
        raise StartFailed(f"the engine made no tokens: {exc or 'not in time'}") from exc
    if sink.status != HTTPStatus.OK:
        logger.warning("the warm-up request was answered with status %d", sink.status)


def _make_client(args: Namespace, spec: WorkerSpec, steps: StepState) -> AsyncLLM:
    """Create AsyncLLM and, with it, the engine core; returns when the model is loaded."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from engine.vllm_stats import stat_logger_factory

    # vLLM's logger of statistics reports when it is asked to, which nobody does, and writes a line for every step.
    logging.getLogger(STATS_LOGGER).setLevel(logging.WARNING)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    try:
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        if is_cpu_build() and spec.engine.tensor_parallel * spec.engine.pipeline_parallel == 1:
            # platforms/cpu.py asks for spawn; a fork shares the imported pages and saves the import.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        return AsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[stat_logger_factory(steps)],
            disable_log_stats=engine_args.disable_log_stats,
        )
    except (RuntimeError, ValueError, OSError, AssertionError) as exc:
        raise StartFailed(f"vLLM did not start: {exc}") from exc
