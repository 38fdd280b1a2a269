"""The program of one worker process: `python -m cluster.worker_process --spec FILE --events-fd N`.

Owns the order of start and stop, and the JSON lines that tell the launcher of them; what it is told meanwhile is
cluster.worker_orders' matter. grpc must stay unimported until the engine is up: the engine core is forked from here,
and gRPC's threads do not survive a fork.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cluster.pulse import BEAT_S
from cluster.worker import RoleWorker
from core.engine import Engine
from core.errors import BatonError, ConfigError
from core.worker_spec import WorkerSpec
from engine.process_guard import die_with_parent, guard_forks

logger = logging.getLogger(__name__)

EXIT_START_FAILED = 1
EXIT_ENGINE_FAILED = 3
MAX_MESSAGE_CHARS = 4000  # an event is written at once and must fit into the pipe


class Events:
    """Writes events to the launcher; one that is gone is no reason to fail."""

    def __init__(self, fd: int, start_s: float) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        self._start_s = start_s

    def restart(self) -> None:
        """Count from now on."""
        self._start_s = time.time()

    def stage(self, name: str) -> None:
        """Tell that a stage of the start is done."""
        elapsed_s = round(time.time() - self._start_s, 3)
        logger.info("stage %s done at %.1f s", name, elapsed_s)
        self._write({"event": "stage", "name": name, "elapsed_s": elapsed_s})

    def ready(self, address: str, worker: RoleWorker) -> None:
        """Tell that the worker takes sessions at `address`."""
        self._write({"event": "ready", "address": address, "hello": asdict(worker.hello)})

    def alive(self) -> None:
        """Give a sign of life."""
        self._write({"event": "alive"})

    def draining(self, reason: str) -> None:
        """Tell that the worker takes no new legs and will end."""
        logger.info("draining: %s", reason)
        self._write({"event": "draining", "reason": reason})

    def role(self, address: str, worker: RoleWorker) -> None:
        """Tell that the worker has taken the role in its hello."""
        logger.info("role is %s; %d legs run", worker.hello.role, worker.num_legs)
        hello = asdict(worker.hello)
        self._write({"event": "role", "address": address, "hello": hello, "num_legs": worker.num_legs})

    def failed(self, error: str, message: str) -> None:
        """Tell why the process is about to end."""
        logger.error("%s: %s", error, message)
        self._write({"event": "failed", "error": error, "message": message[:MAX_MESSAGE_CHARS]})

    def _write(self, event: dict[str, object]) -> None:
        # A launcher that stands still must not stop this process: what does not fit into the pipe is left out.
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._fd, json.dumps(event).encode() + b"\n")


async def start_engine(spec: WorkerSpec, events: Events) -> Engine:
    """Start the engine that `spec` asks for. Raises ConfigError or StartFailed."""
    if spec.engine.kind == "simulated":
        from engine.simulated import SimulatedEngine

        simulated: Engine = await SimulatedEngine.start(spec)
        events.stage("engine")
        return simulated
    if spec.engine.kind == "vllm":
        from engine.vllm_engine import VllmEngine

        return await VllmEngine.start(spec, events.stage)
    raise ConfigError(f"engine.kind is {spec.engine.kind!r}; use 'vllm' or 'simulated'")


async def serve(spec: WorkerSpec, events: Events) -> int:
    """Run the worker until SIGTERM or the engine's end; return the exit code."""
    # First, for a missing file is told at once and an engine takes its time.
    tls = spec.tls.for_servers() if spec.tls else None
    engine = await start_engine(spec, events)
    beats = asyncio.create_task(_beat(events), name="signs of life")
    try:
        return await _serve_engine(spec, events, engine, tls)
    finally:
        await engine.close()
        beats.cancel()


async def _serve_engine(spec: WorkerSpec, events: Events, engine: Engine, tls: ssl.SSLContext | None) -> int:
    from cluster.session_server import SessionServer
    from cluster.worker_orders import WorkerOrders

    worker = RoleWorker(spec, engine)
    server = SessionServer(worker, host=spec.host, port=spec.port, token=spec.token, tls=tls)
    port = await server.start()
    events.stage("serving")
    address = f"{spec.host}:{port}"
    orders = WorkerOrders(worker, events=events, address=address)
    failure = asyncio.create_task(engine.failed(), name="engine failure")
    events.ready(address, worker)
    over = asyncio.create_task(orders.run(), name="orders")
    try:
        await asyncio.wait((failure, over), return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            events.failed("engine_failed", failure.result())
            return EXIT_ENGINE_FAILED
        over.result()
        return 0
    finally:
        failure.cancel()
        over.cancel()
        await server.stop(0)


async def _beat(events: Events) -> None:
    """Let the launcher know, again and again, that the event loop of this process turns."""
    while True:
        events.alive()
        await asyncio.sleep(BEAT_S)


def prepare_process(spec: WorkerSpec, events_fd: int) -> None:
    """Pin this process, set its environment and guard its forks; may exec this process anew, once."""
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    if spec.engine.kind != "vllm":
        return
    from engine.vllm_env import apply_environment, start_core_threads

    if apply_environment(spec):
        os.execv(sys.executable, [sys.executable, "-m", "cluster.worker_process", *sys.argv[1:]])
    os.set_inheritable(events_fd, False)
    guard_forks(close_fds=(events_fd,), in_child=lambda: start_core_threads(spec))


def stand_by(spec: WorkerSpec) -> None:
    """Load what takes long to load, and return when the launcher writes a line; the spec is then that of a new life.

    Ends the process when the launcher goes.
    """
    if spec.engine.kind == "vllm":
        from engine.vllm_engine import load_libraries

        load_libraries()
    logger.info("stands by")
    while (byte := os.read(sys.stdin.fileno(), 1)) != b"\n":  # what follows the line is for the worker's orders
        if not byte:
            sys.exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker process; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.worker_process", description="Run one Baton worker.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file of a WorkerSpec")
    parser.add_argument("--events-fd", type=int, required=True, help="file descriptor that takes events, JSON lines")
    parser.add_argument("--parent-pid", type=int, help="die with this process")
    parser.add_argument("--standby", action="store_true", help="load the engine's libraries, then wait for a line")
    parser.add_argument("--start-time", type=float, default=time.time(), help="when the launcher began (Unix time)")
    options = parser.parse_args(arguments)
    if options.parent_pid is not None:
        die_with_parent(options.parent_pid)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    events = Events(options.events_fd, options.start_time)
    try:
        spec = WorkerSpec.from_json(options.spec.read_text())
        prepare_process(spec, options.events_fd)
        if options.standby:
            stand_by(spec)
            spec = WorkerSpec.from_json(options.spec.read_text())
            events.restart()
        with asyncio.Runner(loop_factory=_loop_factory) as runner:
            return runner.run(serve(spec, events))
    except BatonError as exc:
        logger.debug("start failed", exc_info=True)
        events.failed(exc.name, str(exc))
    except Exception as exc:  # process boundary: the launcher must hear of it
        logger.exception("the worker process failed")
        events.failed("start_failed", f"{type(exc).__name__}: {exc}")
    return EXIT_START_FAILED


def _loop_factory() -> asyncio.AbstractEventLoop:
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run() -> None:
    """Run `main` and leave without the interpreter's teardown, in which native libraries of the engine may hang."""
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
