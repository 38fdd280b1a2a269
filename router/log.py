"""The router's log file: one line of JSON for each request, ordinary lines for everything else.

Owns how the standard logging module is set up in a router process. Must not decide what is logged.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

REQUEST_LOGGER: Final = "router.request"


class BufferedFileHandler(logging.FileHandler):
    """Leaves the moment of writing to whoever calls `flush`: a system call for each request costs more than its route.

    Warnings are written at once, with all that came before them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line to the buffer."""
        assert self.stream is not None, "the file is opened when the handler is made"
        self.stream.write(self.format(record) + "\n")
        if record.levelno >= logging.WARNING:
            self.flush()


class _Lines(logging.Formatter):
    """Requests are JSON already and say their time; all else gets time, level and source."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == REQUEST_LOGGER else super().format(record)


def log_to(path: Path) -> logging.Handler:
    """Send all logging of this process to a file; the caller flushes from time to time, and closes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = BufferedFileHandler(path)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Its warnings are about what clients send: a line for each would let any of them fill the disk.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # Nothing above prints them, and finding them out is most of the cost of a line (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    return handler
