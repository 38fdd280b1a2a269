"""What a request says of its hand-over: the mapping that an engine calls `kv_transfer_params`.

Owns its keys. Must not know engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kv_transfer.plan import ReceiveParams, SendParams


def receive_params(params: Mapping[str, Any] | None) -> ReceiveParams | None:
    """Read what a request receives; None if nothing."""
    if not params or not params.get("do_remote_prefill"):
        return None
    return ReceiveParams(str(params["transfer_id"]), float(params["lease_s"]))


def send_params(params: Mapping[str, Any] | None) -> SendParams | None:
    """Read what a request sends; None if nothing."""
    if not params or not params.get("do_remote_decode"):
        return None
    due_s = params.get("due_s")
    return SendParams(
        str(params["transfer_id"]),
        str(params["peer"]),
        float(params["lease_s"]),
        None if due_s is None else float(due_s),
    )
