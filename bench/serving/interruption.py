"""Ctrl-C while load runs: what was measured by then is kept.

Owns the signal's handler for the time of a run. Must not know what becomes of a result.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bench.serving.load_run import LoadRun


@contextmanager
def ended_by_ctrl_c(load: LoadRun) -> Iterator[None]:
    """End `load` at the first SIGINT; further ones find it ending, which takes no time that somebody waits for.

    To let them interrupt the event loop instead would leave it half closed, and uvloop waits for ever to close such a
    one. Off the main thread signals are not ours, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, load.interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
