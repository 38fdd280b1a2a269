"""A collector of traces on this machine, for tests."""

from __future__ import annotations

import http.server
import threading
from queue import Queue
from typing import Any

import orjson

WAIT_S = 10.0


class Collector:
    """A local OTLP receiver that answers with a status of its choice."""

    def __init__(self) -> None:
        self.requests: Queue[tuple[str, dict[str, Any]]] = Queue()
        self.status = 200
        self.proceed = threading.Event()  # answers wait for it
        self.proceed.set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.proceed.wait(WAIT_S)
                collector.requests.put((self.path, orjson.loads(body)))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self) -> list[dict[str, Any]]:
        """Wait for the next batch and return its spans."""
        _, body = self.requests.get(timeout=WAIT_S)
        found: list[dict[str, Any]] = body["resourceSpans"][0]["scopeSpans"][0]["spans"]
        return found

    def names(self) -> list[str]:
        """Wait for the next batch and name its spans."""
        return [span["name"] for span in self.spans()]

    def close(self) -> None:
        self.proceed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)
