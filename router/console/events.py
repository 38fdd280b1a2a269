"""The latest things that the router said of itself and its cluster: what its log has, requests left out.

Owns a ring of log lines, bounded by number and length. Must not write files or decide what is worth a line.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

from router.log import REQUEST_LOGGER

MAX_EVENTS: Final = 100
MAX_CHARACTERS: Final = 300
_LOGGERS: Final = ("router", "cluster")


@dataclass(frozen=True, slots=True)
class Event:
    """One line."""

    at_s: float  # since the epoch
    level: str  # "info", "warning" or "error"
    source: str  # the module that said it
    text: str
    count: int = 1  # how often it was said in a row; `at_s` is the last time


class EventRing(logging.Handler):
    """Keeps the latest lines of this project's loggers from `open` to `close`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.latest: deque[Event] = deque(maxlen=MAX_EVENTS)  # oldest first

    def open(self) -> None:
        """Begin to listen."""
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)

    def close(self) -> None:
        """Listen no more; idempotent."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line; those of requests are told elsewhere."""
        if record.name == REQUEST_LOGGER:
            return
        text = record.getMessage()
        if len(text) > MAX_CHARACTERS:
            text = text[: MAX_CHARACTERS - 1] + "…"
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        count = 1
        if self.latest and (self.latest[-1].source, self.latest[-1].text) == (record.name, text):
            count = self.latest.pop().count + 1
        self.latest.append(Event(record.created, level, record.name, text, count))
