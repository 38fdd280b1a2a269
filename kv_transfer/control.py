"""Calls the control verbs of an engine's KV endpoint; used by the worker that owns the engine, and by tests."""

from __future__ import annotations

import json
from collections.abc import Mapping

import grpc

from core.cluster_token import token_metadata
from core.component_tls import ComponentTLS
from core.errors import Unauthorized
from kv_transfer.grpc_credentials import open_channel
from kv_transfer.grpc_transport import CONTROL_TIMEOUT_S, OPTIONS, SERVICE, control_request, translate


class KVControlClient:
    """Calls the control verbs of an engine's KV endpoint; used by the worker that owns the engine."""

    def __init__(
        self,
        address: str,
        token: str = "",
        *,
        tls: ComponentTLS | None = None,
        timeout_s: float = CONTROL_TIMEOUT_S,
    ) -> None:
        # One endpoint per tensor-parallel rank.
        self._channels = [open_channel(part, OPTIONS, tls) for part in address.split(",")]
        self._token = token
        self._timeout_s = timeout_s

    async def cancel(self, transfer_id: str, reason: str) -> None:
        """Say that a hand-over will not happen; whoever waits for it goes on without."""
        await self._call("cancel", {"transfer_id": transfer_id, "reason": reason})

    async def stats(self) -> dict[str, object]:
        """Report the ledger and counters of the first rank."""
        return (await self._call("stats", {}))[0]

    async def transports(self) -> dict[str, object]:
        """Report the ways to the first rank: host identity, epoch, and addresses by name."""
        return (await self._call("transports", {}))[0]

    async def inject(self, faults: Mapping[str, int]) -> bool:
        """Replace the injected faults (kv_transfer.faults); return False where the worker's spec does not allow it."""
        replies = await self._call("faults", {name: str(value) for name, value in faults.items()})
        return all(bool(reply["taken"]) for reply in replies)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close(None)

    async def _call(self, verb: str, arguments: dict[str, str]) -> list[dict[str, object]]:
        replies = []
        request = control_request(verb, arguments)
        for channel in self._channels:
            method = channel.unary_unary(f"/{SERVICE}/Control")
            try:
                reply = await method(request, timeout=self._timeout_s, metadata=token_metadata(self._token))
            except grpc.aio.AioRpcError as exc:
                if exc.code() is grpc.StatusCode.UNAUTHENTICATED:
                    raise Unauthorized("the engine's KV endpoint refused the cluster token") from exc
                raise translate(exc) from exc
            replies.append(json.loads(reply))
        return replies
