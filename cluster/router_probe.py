"""Asks a running router how it is, over HTTP.

Owns the questions that commands ask: its health, its workers' load, how it keeps its promises, one real completion, and
the explanation of a request. Must not know Ray.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from cluster.console import PredictionReport, PromiseReport, RouterLoad, RouterReport
from cluster.front import Front
from core.errors import BatonError, SLOInfeasible, StartFailed
from core.policy.pair_trust import PairReport, Trust

ASK_S = 5.0
POLL_S = 0.1
PROMPT = "To be, or not to be"
MAX_TOKENS = 4


def ask_router(front: Front) -> RouterReport:
    """Ask for health and load; a router that does not answer is a report too."""
    try:
        _, health = _ask(front, "GET", "/health", None, ASK_S)
        _, workers = _ask(front, "GET", "/workers", None, ASK_S)
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
        _, promises = _ask(front, "GET", "/status", None, ASK_S)
        answer = json.loads(health)
        return RouterReport(answer["status"], answer["reason"], loads, _promises(promises))
    except (OSError, http.client.HTTPException, ValueError, KeyError) as exc:
        return RouterReport("no answer", str(exc) or type(exc).__name__, {})


def _promises(answer: bytes) -> tuple[PromiseReport, ...]:
    return tuple(
        PromiseReport(
            found["name"],
            found["attainment_target"],
            found["attainment_60s"],
            found["attainment_1h"],
            tuple(
                PredictionReport(
                    p["quantity"],
                    p["coverage"],
                    (p["band_low"], p["band_high"]),
                    p["interval_factor"],
                    p["trusted"],
                    p["reason"],
                    p["refuted"],
                )
                for p in found["predictions"]
            ),
        )
        for found in json.loads(answer)["classes"]
    )


def ask_pairs(front: Front) -> tuple[PairReport, ...]:
    """Ask which pairs of workers get no requests together, and why; nothing of a router that does not answer."""
    try:
        _, answer = _ask(front, "GET", "/status", None, ASK_S)
        return tuple(
            PairReport(p["prefill"], p["decode"], Trust(p["state"]), p["reason"], p["retry_in_s"])
            for p in json.loads(answer)["other_pairs"]
        )
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return ()


def ask_explanation(front: Front, request_id: str) -> bytes:
    """Ask why a request went where it did; return the JSON. Raises BatonError when the router cannot say."""
    url = front.url
    path = f"/v1/requests/{quote(request_id, safe='')}/explain"
    try:
        status, body = _ask(front, "GET", path, None, ASK_S)
    except ssl.SSLCertVerificationError as exc:
        remedy = "name the file of the authority that signed it with --ca, and the router as its certificate does"
        raise BatonError(f"the certificate of {url} is not trusted ({exc.verify_message}); {remedy}") from exc
    except ssl.SSLError as exc:
        raise BatonError(f"the router at {url} does not speak TLS ({exc.reason}); is it http://?") from exc
    except (OSError, http.client.HTTPException) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise BatonError(f"the router at {url} does not answer: {why}") from exc
    if status != 200:
        raise BatonError(f"the router at {url} answered {status}: {_message(body)}")
    return body


def _message(body: bytes) -> str:
    """Read the message out of an error answer, or take the answer as it is."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]


def wait_until_healthy(front: Front, timeout_s: float, check: Callable[[], None]) -> None:
    """Wait until GET /health says 200. `check` may raise to give up. Raises StartFailed."""
    deadline = time.monotonic() + timeout_s
    while True:
        check()
        try:
            status, body = _ask(front, "GET", "/health", None, ASK_S)
        except (OSError, http.client.HTTPException) as exc:
            status, body = 0, str(exc).encode()
        if status == 200:
            return
        if time.monotonic() > deadline:
            raise StartFailed(f"{front.url}/health does not become 200: {body.decode(errors='replace')}")
        time.sleep(POLL_S)  # the router tells nobody when it becomes healthy


def complete_once(front: Front, model: str, timeout_s: float) -> float:
    """Ask for one short completion; return the seconds it took. Raises StartFailed unless tokens come back."""
    request = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0}).encode()
    url, begin_s = front.url, time.monotonic()
    try:
        status, body = _ask(front, "POST", "/v1/completions", request, timeout_s)
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
    return "; change slo.classes, or set router.admission to false, so that nothing is refused for its SLO"


def _ask(front: Front, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
    parts = urlsplit(front.url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        trusted = front.tls or ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=timeout_s, context=trusted
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {front.key}"} if front.key else {})
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ask_lives(front: Front) -> dict[str, tuple[str, int]]:
    """Ask for role and epoch of each worker that the router has, by id; none when it does not answer."""
    try:
        _, workers = _ask(front, "GET", "/workers", None, ASK_S)
        return {w["worker_id"]: (w["role"], w["epoch"]) for w in json.loads(workers)["workers"]}
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return {}


def ask_traffic(front: Front, after: int) -> bytes:
    """Ask for the requests that ended after the one of that number, and the load; return the JSON.

    Raises OSError or http.client.HTTPException when the router does not answer, BatonError when it refuses.
    """
    status, body = _ask(front, "GET", f"/traffic?after={after}", None, ASK_S)
    if status != 200:
        raise BatonError(f"the router answered {status}: {_message(body)}")
    return body
