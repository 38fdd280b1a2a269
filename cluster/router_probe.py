"""Asks a running router how it is, over HTTP.

Owns the three questions that commands ask: its health, its workers' load, and one real completion. Must not know Ray.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from cluster.console import RouterLoad, RouterReport
from core.errors import SLOInfeasible, StartFailed

ASK_S = 5.0
POLL_S = 0.1
PROMPT = "To be, or not to be"
MAX_TOKENS = 4


def router_url(address: str) -> str:
    """Make the URL at which this machine reaches a router that listens on `address`, a host:port."""
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "", "[::]", "::"):
        host = "127.0.0.1"
    return f"http://{host}:{port}"


def ask_router(url: str) -> RouterReport:
    """Ask for health and load; a router that does not answer is a report too."""
    try:
        _, health = _ask(url, "GET", "/health", None, ASK_S)
        _, workers = _ask(url, "GET", "/workers", None, ASK_S)
        loads = {
            w["worker_id"]: RouterLoad(
                running=w["running"],
                waiting=w["waiting"],
                kv_blocks_used=w["kv_blocks_used"],
                kv_blocks_total=w["kv_blocks_total"],
                draining=w["draining"],
            )
            for w in json.loads(workers)["workers"]
        }
        answer = json.loads(health)
        return RouterReport(answer["status"], answer["reason"], loads)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as exc:
        return RouterReport("no answer", str(exc) or type(exc).__name__, {})


def wait_until_healthy(url: str, timeout_s: float, check: Callable[[], None]) -> None:
    """Wait until GET /health says 200. `check` may raise to give up. Raises StartFailed."""
    deadline = time.monotonic() + timeout_s
    while True:
        check()
        try:
            status, body = _ask(url, "GET", "/health", None, ASK_S)
        except (OSError, http.client.HTTPException) as exc:
            status, body = 0, str(exc).encode()
        if status == 200:
            return
        if time.monotonic() > deadline:
            raise StartFailed(f"{url}/health does not become 200: {body.decode(errors='replace')}")
        time.sleep(POLL_S)  # the router tells nobody when it becomes healthy


def complete_once(url: str, model: str, timeout_s: float) -> float:
    """Ask for one short completion; return the seconds it took. Raises StartFailed unless tokens come back."""
    request = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0}).encode()
    begin_s = time.monotonic()
    try:
        status, body = _ask(url, "POST", "/v1/completions", request, timeout_s)
    except (OSError, http.client.HTTPException) as exc:
        raise StartFailed(f"the first completion at {url} failed: {exc}") from exc
    if status != 200 or not json.loads(body).get("choices"):
        answer = body.decode(errors="replace")
        raise StartFailed(f"the first completion at {url} got {status}: {answer}{_remedy(answer)}")
    return time.monotonic() - begin_s


def _remedy(answer: str) -> str:
    """Say what to do about a refusal that no waiting ends."""
    if SLOInfeasible.name not in answer:
        return ""
    return "; change slo.classes, or choose a router.policy that refuses nothing, as least-predicted-work"


def _ask(url: str, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
