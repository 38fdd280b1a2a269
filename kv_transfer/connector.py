"""vLLM's view of the hand-over: one connector class, loaded by `kv_connector_module_path`.

The scheduler half wraps HandoverPlanner, the worker half wraps KVEndpoint; the two share nothing but the step's
metadata. Every request decides by its own `kv_transfer_params` whether it sends, receives or neither, so one engine
serves every role. Written against vLLM 0.24-0.33 (base class kv_connector/v1/base.py); seen running on 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from core.component_tls import tls_from_json
from core.engine import RESUMED_TOKENS
from kv_transfer.block_io import BlockIO
from kv_transfer.endpoint import EndpointConfig, KVEndpoint
from kv_transfer.faults import SendFaults
from kv_transfer.frames import Offer
from kv_transfer.plan import (
    HandoverPlanner,
    ReceiveParams,
    SendParams,
    SendRange,
    StepPlan,
    prompt_digest,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

# vLLM's engine steps every millisecond while all it has is requests that wait for KV; each such step wakes the worker's
# front as well: 26 ms of CPU for 90 ms of waiting, measured, on a core that shares its execution units with prefill's.
# Waiting here instead ends as soon as KV lands, and delays a request that comes meanwhile by at most this.
_IDLE_WAIT_S = 0.005


@dataclass(frozen=True, slots=True)
class BatonMetadata(KVConnectorMetadata):
    """The only thing that passes from the scheduler half to the worker half."""

    plan: StepPlan


class BatonConnector(KVConnectorBase_V1):
    """Streams whole KV blocks between engines, layer by layer."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._extra: dict[str, Any] = dict(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._planner: HandoverPlanner | None = None
        self._worker: _WorkerHalf | None = None
        self._rank: int = vllm_config.parallel_config.rank
        if role is KVConnectorRole.SCHEDULER:
            self._planner = HandoverPlanner(block_size=vllm_config.cache_config.block_size)

    @property
    def requires_kv_delivery(self) -> bool:
        """No: blocks are copied out as they are computed, so a preemption never takes unsent KV away."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Yes: layers are copied out between them, which a graph of the whole model would skip."""
        return True

    # Scheduler half

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Say how many prompt tokens will come from the prefill side; pure, may be called in every step."""
        params = _receive_params(request)
        if params is None or request.prompt_token_ids is None:
            return 0, False
        count = self._scheduler.external_tokens(
            request.request_id,
            params,
            num_prompt_tokens=_num_known(request),
            num_computed_tokens=num_computed_tokens,
        )
        return count, count > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Note the blocks that were reserved for a request, before anything is computed or received."""
        planner = self._scheduler
        receive = _receive_params(request)
        if receive is not None and num_external_tokens > 0:
            planner.open_receive(
                request.request_id,
                receive,
                digest=_digest(request),
                num_prompt_tokens=_num_known(request),
                num_external_tokens=num_external_tokens,
                block_ids=blocks.get_block_ids()[0],
            )
        elif receive is not None:
            planner.refuse_receive(request.request_id, receive)
        send = _send_params(request)
        if send is not None and request.prompt_token_ids is not None:
            planner.open_send(
                request.request_id,
                send,
                digest=_digest(request),
                num_prompt_tokens=request.num_prompt_tokens,
                block_ids=blocks.get_block_ids()[0],
            )

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> BatonMetadata:
        """Turn what this step computes into the worker half's plan."""
        planner = self._scheduler
        scheduled = scheduler_output.num_scheduled_tokens
        for new in scheduler_output.scheduled_new_reqs:
            planner.replace_blocks(new.req_id, new.block_ids[0])
            planner.advance_send(new.req_id, new.num_computed_tokens + scheduled[new.req_id])
        cached = scheduler_output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            new_blocks = cached.new_block_ids[index]
            if new_blocks is not None:
                resumed = request_id in cached.resumed_req_ids
                (planner.replace_blocks if resumed else planner.add_blocks)(request_id, new_blocks[0])
            planner.advance_send(request_id, cached.num_computed_tokens[index] + scheduled[request_id])
        return BatonMetadata(planner.take_step(computes=scheduler_output.total_num_scheduled_tokens > 0))

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Give up what the request still had open; its blocks need no delay, they were copied out or written."""
        self._scheduler.finish(request.request_id)
        return False, None

    @property
    def _scheduler(self) -> HandoverPlanner:
        assert self._planner is not None, "scheduler-half method called on the worker half"
        return self._planner

    # Worker half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Start listening, once the cache exists."""
        self._worker = _WorkerHalf(kv_caches, self._extra, self._rank)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Take this step's plan; offers and reservations go out before the forward pass begins."""
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, BatonMetadata)
        if self._worker is not None:
            self._worker.begin_step(connector_metadata.plan)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: object, **kwargs: object) -> None:
        """Copy out the blocks this step completed in one layer; they leave while the next layer computes."""
        if self._worker is not None:
            self._worker.save_layer(layer_name)

    def wait_for_save(self) -> None:
        """Mark the hand-overs whose last block this step completed."""
        if self._worker is not None:
            self._worker.end_step()

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: object) -> None:
        """Do nothing: receiving started when the step's plan was bound."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: a request is scheduled only after all of its KV has landed."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Report requests whose hand-over ended, each exactly once."""
        if self._worker is None:
            return None, None
        return None, self._worker.take_finished() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Report blocks the engine must compute itself."""
        return self._worker.take_bad_blocks() if self._worker is not None else set()

    def shutdown(self) -> None:
        """Stop the KV thread."""
        if self._worker is not None:
            self._worker.endpoint.close()


class _WorkerHalf:
    """Runs each step's plan on one engine rank; called from the engine thread only."""

    def __init__(self, kv_caches: Mapping[str, torch.Tensor], extra: Mapping[str, Any], rank: int) -> None:
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
        )
        self._rank = rank
        self._io = BlockIO(kv_caches)
        self._faulty: dict[str, SendFaults] = {}  # transfers that a fault was injected into
        self._ranges: tuple[SendRange, ...] = ()
        self._computes = False
        self._bad_blocks: set[int] = set()
        self.endpoint = KVEndpoint(config, self._io, SendFaults.parse(dict(extra.get("faults") or {})))
        self.endpoint.start()

    def begin_step(self, plan: StepPlan) -> None:
        sender = self.endpoint.sender
        self._ranges = plan.send_ranges
        self._computes = plan.computes
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
            self.endpoint.stage(part.transfer_id, layer, first, ids, self._faulty.get(part.transfer_id))

    def end_step(self) -> None:
        self.endpoint.flush()
        for part in self._ranges:
            if part.last:
                self.endpoint.finish(part.transfer_id)
                self._faulty.pop(part.transfer_id, None)
        self._ranges = ()

    def take_finished(self) -> set[str]:
        if not self._computes:
            self.endpoint.wait_results(_IDLE_WAIT_S)
        results = self.endpoint.take_results()
        self._bad_blocks |= results.bad_blocks
        return results.finished

    def take_bad_blocks(self) -> set[int]:
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad


def _receive_params(request: Request) -> ReceiveParams | None:
    params = request.kv_transfer_params
    if not params or not params.get("do_remote_prefill"):
        return None
    return ReceiveParams(str(params["transfer_id"]), float(params["lease_s"]))


def _send_params(request: Request) -> SendParams | None:
    params = request.kv_transfer_params
    if not params or not params.get("do_remote_decode"):
        return None
    return SendParams(str(params["transfer_id"]), str(params["peer"]), float(params["lease_s"]))


def _digest(request: Request) -> str:
    keys = [request.lora_request.lora_name] if request.lora_request is not None else [""]
    keys += [feature.identifier for feature in request.mm_features or ()]
    return prompt_digest(request.all_token_ids[: _num_known(request)], *keys)


def _num_known(request: Request) -> int:
    """Count the tokens a request came with: its prompt, and the output that another engine made of it."""
    extra = request.sampling_params.extra_args if request.sampling_params is not None else None
    return int(request.num_prompt_tokens) + len((extra or {}).get(RESUMED_TOKENS) or ())
