"""Workers as a policy sees them."""

from __future__ import annotations

from core.types import Fingerprint, Role, WorkerHello, WorkerRecord, WorkerState, WorkerView


def fingerprint(model: str) -> Fingerprint:
    return Fingerprint("sim", model, "t", "float32", "auto", 32, "cpu", 1, 1, "")


def worker(
    worker_id: str,
    role: Role,
    *,
    model: str = "a",
    requests: int = 0,
    tokens: int = 0,
    prompts: int | None = None,
    context: int = 0,
    since_s: float | None = None,
    **state: int,
) -> WorkerView:
    """Make a worker with this router's own legs in flight; `prompts` is 1 for one that owes tokens."""
    owed = prompts if prompts is not None else min(tokens, 1)
    return WorkerView(
        record=WorkerRecord(worker_id, role, 1, "127.0.0.1:1", "n"),
        hello=WorkerHello(worker_id, role, 1, "m", 4096, "127.0.0.1:2", 100, fingerprint(model)),
        state=WorkerState(**state),
        inflight_requests=requests,
        inflight_prompt_tokens=tokens,
        inflight_prompts=owed,
        inflight_prompt_pairs=tokens * tokens / 2 / max(1, owed),
        inflight_context_tokens=context,
        prompting_since_s=since_s,
    )
