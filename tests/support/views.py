"""Workers as a policy sees them."""

from __future__ import annotations

from core.types import Fingerprint, Role, WorkerHello, WorkerRecord, WorkerState, WorkerView


def fingerprint(model: str) -> Fingerprint:
    return Fingerprint("sim", model, "t", "float32", "auto", 32, "cpu", 1, 1, "")


def worker(
    worker_id: str, role: Role, *, model: str = "a", requests: int = 0, tokens: int = 0, **state: int
) -> WorkerView:
    return WorkerView(
        record=WorkerRecord(worker_id, role, 1, "127.0.0.1:1", "n"),
        hello=WorkerHello(worker_id, role, 1, "m", 4096, "127.0.0.1:2", 100, fingerprint(model)),
        state=WorkerState(**state),
        inflight_requests=requests,
        inflight_prompt_tokens=tokens,
    )
