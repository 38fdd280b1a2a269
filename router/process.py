"""One router process, from its arguments to SIGTERM or SIGINT.

Owns the process: arguments, log, signals, events to the parent, exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

import uvloop

from cluster.membership import MembershipClient
from cluster.pool import WorkerPool
from core.errors import BatonError
from core.router_spec import RouterSpec
from router.log import log_to
from router.server import RouterServer, settle_garbage_collector

LOG_FLUSH_S: Final = 1.0

log = logging.getLogger(__name__)


def main(modules: str) -> int:
    """Parse the arguments and run; 0 after a clean stop, 1 after an error that was told.

    `modules` says for the log how the router's modules run.
    """
    parser = argparse.ArgumentParser(prog="router", description="Run one Baton router.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with a RouterSpec")
    spec = RouterSpec.from_json(parser.parse_args().spec.read_text())
    handler = log_to(Path(spec.run_dir) / "router.log")
    log.info("the router %s", modules)
    try:
        uvloop.run(_run(spec, handler))
    except BatonError as exc:
        _report(spec, {"event": "failed", "error": exc.name, "message": str(exc)})
        sys.stderr.write(f"router: {exc}\n")
        return 1
    finally:
        handler.close()
    return 0


async def _run(spec: RouterSpec, handler: logging.Handler) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    members = MembershipClient(spec.membership_address, spec.token, tls=spec.tls)
    pool = WorkerPool(members, token=spec.token, tls=spec.tls.for_clients() if spec.tls else None)
    server = RouterServer(spec, pool, lambda: members.decisions)
    address = await server.start()
    settle_garbage_collector()
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    _report(spec, {"event": "ready", "address": address})
    flusher = asyncio.create_task(_each_second(spec, handler), name="log and signs of life")
    waiting = [
        asyncio.create_task(stopped.wait(), name="signal"),
        asyncio.create_task(server.failed(), name="http-ended"),
    ]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await server.stop()
        for task in (flusher, *waiting):
            task.cancel()
        await asyncio.gather(flusher, *waiting, return_exceptions=True)


async def _each_second(spec: RouterSpec, handler: logging.Handler) -> None:
    """Write the log out, and let the parent process know that this one's event loop turns."""
    while True:
        await asyncio.sleep(LOG_FLUSH_S)
        _report(spec, {"event": "alive"})
        handler.flush()


def _report(spec: RouterSpec, event: dict[str, str]) -> None:
    """Tell the parent process, which reads JSON lines; one that stands still or is gone is told nothing."""
    if spec.events_fd is not None:
        os.set_blocking(spec.events_fd, False)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(spec.events_fd, json.dumps(event).encode() + b"\n")
