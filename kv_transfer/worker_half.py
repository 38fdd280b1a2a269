"""The worker half of a hand-over: what the engine thread of one rank does in each step.

Owns what lasts longer than a step: the requests whose blocks the engine keeps for us, blocks that did not come, faults
under way. Must not know vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from core.component_tls import tls_from_json
from core.types import Quarantined
from kv_transfer.block_io import BlockIO
from kv_transfer.endpoint import EndpointConfig, KVEndpoint
from kv_transfer.faults import SendFaults
from kv_transfer.frames import Offer
from kv_transfer.plan import SendHold, SendRange, StepPlan

# vLLM's engine steps every millisecond while all it has is requests that wait for KV; each such step wakes the worker's
# front as well: 26 ms of CPU for 90 ms of waiting, measured, on a core that shares its execution units with prefill's.
# Waiting here instead ends as soon as KV lands, and delays a request that comes meanwhile by at most this.
_IDLE_WAIT_S: Final = 0.005
_HELD_WAIT_S: Final = 0.001  # while the peer reads the last blocks of a request, a millisecond or two


class WorkerHalf:
    """Runs each step's plan on one engine rank; called from the engine thread only."""

    def __init__(
        self, kv_caches: Mapping[str, torch.Tensor], extra: Mapping[str, Any], rank: int, *, holds_blocks: bool
    ) -> None:
        suffix = "" if rank == 0 else f".rank{rank}"
        config = EndpointConfig(
            worker_id=str(extra["worker_id"]),
            epoch=int(extra["epoch"]),
            host=str(extra["host"]),
            port=int(extra.get("port", 0)) + (rank if extra.get("port") else 0),
            endpoint_file=str(extra["endpoint_file"]) + suffix,
            fingerprint=str(extra["fingerprint"]),
            token=str(extra.get("token", "")),
            tls=tls_from_json(extra.get("tls")),
            lease_s=float(extra.get("lease_s", 30.0)),
            staging_bytes=int(extra.get("staging_bytes", 1 << 30)),
            transport=str(extra.get("transport", "auto")),
            verify_share=float(extra.get("verify_share", 0.0)),
            share_cache=holds_blocks,
        )
        self._rank = rank
        self._io = BlockIO(kv_caches)
        self._faulty: dict[str, SendFaults] = {}  # transfers that a fault was injected into
        self._ranges: tuple[SendRange, ...] = ()
        self._holds_blocks = holds_blocks
        self._held: list[SendHold] = []  # all and only finished requests whose blocks the engine keeps for us
        self._computes = False
        self._bad_blocks: set[int] = set()
        self._told: tuple[tuple[str, int, int], ...] = ()  # who is left out, as the front was told last
        self._failed: set[str] = set()
        self.endpoint = KVEndpoint(config, self._io, SendFaults.parse(dict(extra.get("faults") or {})))
        self.endpoint.start()

    def begin_step(self, plan: StepPlan) -> None:
        sender = self.endpoint.sender
        self._ranges = plan.send_ranges
        self._computes = plan.computes
        self._held += plan.send_holds
        for opened in plan.receive_opens:
            self.endpoint.expect(opened)
        for transfer_id in plan.receive_cancels:
            self.endpoint.cancel_receive(transfer_id)
        for transfer_id in plan.send_aborts:
            sender.abort(transfer_id, "the prefill request ended early")
            self._faulty.pop(transfer_id, None)
        for send in plan.send_opens:
            transfer_id = send.params.transfer_id
            if (faults := self.endpoint.faults.take()) is not None:
                self._faulty[transfer_id] = faults
                if faults.never_offer:
                    continue
            offer = Offer(
                transfer_id,
                self.endpoint.config.worker_id,
                self.endpoint.config.epoch,
                self.endpoint.fingerprint,
                send.prompt_digest,
                send.num_blocks,
                self._io.num_layers,
                self._io.block_bytes,
            )
            peers = send.params.peer.split(",")
            sender.open(
                offer,
                request_id=send.request_id,
                peer=peers[self._rank % len(peers)],
                lease_s=send.params.lease_s,
                due_s=send.params.due_s,
            )

    def save_layer(self, layer_name: str) -> None:
        if not self._ranges:
            return
        layer = self._io.layer_index[layer_name]
        for part in self._ranges:
            first = self.endpoint.sender.wants(part.transfer_id, part.first_block, len(part.block_ids))
            if first is None:
                continue
            ids = part.block_ids[first - part.first_block :]
            stays = self._holds_blocks and part.is_final
            self.endpoint.stage(part.transfer_id, layer, first, ids, self._faulty.get(part.transfer_id), stays=stays)

    def end_step(self) -> None:
        self.endpoint.end_step()
        for part in self._ranges:
            if part.last:
                self.endpoint.finish(part.transfer_id)
                self._faulty.pop(part.transfer_id, None)
        self._ranges = ()

    def call_back(self, plan: StepPlan) -> None:
        for transfer_id in plan.send_call_backs:
            self.endpoint.sender.call_back(transfer_id)

    def take_unread(self) -> set[str]:
        """Take the finished requests whose blocks nobody reads any more."""
        done = {held for held in self._held if self.endpoint.sender.let_go(held.transfer_id)}
        self._held = [held for held in self._held if held not in done]
        return {held.request_id for held in done}

    def take_finished(self) -> set[str]:
        if not self._computes:
            self.endpoint.wait_results(_HELD_WAIT_S if self._held else _IDLE_WAIT_S)
        results = self.endpoint.take_results()
        self._bad_blocks |= results.bad_blocks
        self._failed = results.failed  # of this step
        return results.finished

    def take_quarantined(self) -> tuple[Quarantined, ...] | None:
        """Take who is left out, when somebody came into quarantine or left."""
        left_out = tuple(self.endpoint.receiver.quarantine.report())
        keys = tuple((sender.worker_id, sender.epoch, sender.times) for sender in left_out)
        if keys == self._told:
            return None
        self._told = keys
        return left_out

    @property
    def failed(self) -> set[str]:
        """Of the requests that `take_finished` last returned, those that lack KV."""
        return self._failed

    def take_bad_blocks(self) -> set[int]:
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad
