"""vLLM's view of the hand-over: one connector class, loaded by `kv_connector_module_path`.

The scheduler half wraps HandoverPlanner, the worker half wraps KVEndpoint; the two share nothing but the step's
metadata. Every request decides by its own `kv_transfer_params` whether it sends, receives or neither, so one engine
serves every role. Written against vLLM 0.24-0.33 (base class kv_connector/v1/base.py); seen running on 0.32.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from core.engine import RESUMED_TOKENS
from core.errors import ConfigError
from core.types import Quarantined
from kv_transfer.choice import AUTO
from kv_transfer.plan import (
    HandoverPlanner,
    StepPlan,
    prompt_digest,
)
from kv_transfer.quarantine import QUARANTINED
from kv_transfer.receive_times import ReceiveTimes
from kv_transfer.request_params import receive_params, send_params
from kv_transfer.worker_half import WorkerHalf

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


@dataclass(frozen=True, slots=True)
class BatonMetadata(KVConnectorMetadata):
    """The only thing that passes from the scheduler half to the worker half."""

    plan: StepPlan


@dataclass
class BatonStats(KVConnectorStats):
    """Whose KV a rank does not take, carried to the front with the statistics of a step; vLLM's log has none of it."""

    @classmethod
    def of(cls, quarantined: Sequence[Quarantined]) -> BatonStats:
        """Make it of all who are left out; an empty list says that nobody is any more."""
        return cls({QUARANTINED: [asdict(sender) for sender in quarantined]})

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Join two ranks' lists."""
        known = self.data.setdefault(QUARANTINED, [])
        known += [sender for sender in other.data.get(QUARANTINED, ()) if sender not in known]
        return self

    def reduce(self) -> dict[str, int | float]:
        """Give vLLM's log nothing: what this says is in Baton's own."""
        return {}

    def reset(self) -> None:
        """Forget everything."""
        self.data.clear()

    def is_empty(self) -> bool:
        """Tell whether there is nothing to carry."""
        return QUARANTINED not in self.data


class BatonConnector(KVConnectorBase_V1):
    """Streams whole KV blocks between engines, layer by layer."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._extra: dict[str, Any] = dict(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._planner: HandoverPlanner | None = None
        self._worker: WorkerHalf | None = None
        self._rank: int = vllm_config.parallel_config.rank
        _check_one_group(kv_cache_config)
        self._is_windowed = _is_windowed(kv_cache_config)
        self._holds_blocks = not self._is_windowed and _may_share(vllm_config, self._extra)
        if role is KVConnectorRole.SCHEDULER:
            self._planner = HandoverPlanner(vllm_config.cache_config.block_size, self._holds_blocks)
        self._times = ReceiveTimes(time.monotonic)

    @property
    def requires_kv_delivery(self) -> bool:
        """No: blocks are copied out as they are computed, or before a preemption takes them away."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Yes: layers are copied out between them, which a graph of the whole model would skip."""
        return True

    # Scheduler half

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Say how many prompt tokens will come from the prefill side; pure, may be called in every step."""
        params = receive_params(request.kv_transfer_params)
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
        receive = receive_params(request.kv_transfer_params)
        if receive is not None and num_external_tokens > 0:
            self._times.had_blocks(request.request_id)
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
        send = send_params(request.kv_transfer_params)
        if send is not None and request.prompt_token_ids is not None:
            planner.open_send(
                request.request_id,
                send,
                digest=_digest(request),
                num_prompt_tokens=request.num_prompt_tokens,
                block_ids=blocks.get_block_ids()[0],
                goes_on=request.max_tokens > 1,
            )

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> BatonMetadata:
        """Turn what this step computes into the worker half's plan."""
        planner = self._scheduler
        scheduled = scheduler_output.num_scheduled_tokens
        for request_id in scheduler_output.preempted_req_ids or ():
            planner.preempt(request_id)
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
        """Give up what the request still had open; blocks that the peer may still read are held."""
        is_held = self._scheduler.finish(request.request_id)
        return is_held, self._times.take(request.request_id)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Note which hand-overs have ended."""
        self._times.landed(connector_output.finished_recving or ())

    @property
    def _scheduler(self) -> HandoverPlanner:
        assert self._planner is not None, "scheduler-half method called on the worker half"
        return self._planner

    # Worker half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Start listening, once the cache exists."""
        self._worker = WorkerHalf(kv_caches, self._extra, self._rank, holds_blocks=self._holds_blocks)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Take back blocks that this step may overwrite although the peer has not read them."""
        assert isinstance(kv_connector_metadata, BatonMetadata)
        if self._worker is not None:
            self._worker.call_back(kv_connector_metadata.plan)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Take this step's plan; offers and reservations go out before the forward pass begins."""
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, BatonMetadata)
        if self._worker is not None:
            self._worker.begin_step(connector_metadata.plan)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: object, **kwargs: object) -> None:
        """Offer the blocks this step completed in one layer; they leave while the next layer computes."""
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
        received = self._worker.take_finished()
        return self._worker.take_unread() or None, received or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Report requests whose hand-over ended, and which of them lack KV; vLLM 0.30 and later ask so."""
        results = super().get_transfer_results(finished_req_ids)
        if self._is_windowed and self._worker is not None:
            results.failed_recving = self._worker.failed
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Report blocks the engine must compute itself.

        A sliding window has given the blocks before them away, so that nothing can be computed from them on: such a
        request is told of as a whole, by `get_transfer_results`, and computes all of its prompt.
        """
        bad = self._worker.take_bad_blocks() if self._worker is not None else set()
        return set() if self._is_windowed else bad

    def get_kv_connector_stats(self) -> BatonStats | None:
        """Report whose KV is not taken, when that has changed."""
        left_out = self._worker.take_quarantined() if self._worker is not None else None
        return None if left_out is None else BatonStats.of(left_out)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> BatonStats:
        """Make what vLLM's own loggers collect."""
        return BatonStats(data or {})

    def shutdown(self) -> None:
        """Stop the KV thread."""
        if self._worker is not None:
            self._worker.endpoint.close()


def _check_one_group(kv_cache_config: KVCacheConfig) -> None:
    """Raise ConfigError for a model whose layers are in several KV groups.

    vLLM makes one of them for a connector that knows of one, where it can: layers with a sliding window then keep all
    of the context, beside those that need it.
    """
    count = len(kv_cache_config.kv_cache_groups)
    if count > 1:
        raise ConfigError(
            f"kv: this model has {count} KV cache groups, and a hand-over carries one: serve it by decode workers "
            "alone, with kv.transport: none and pools.prefill.replicas: 0"
        )


def _may_share(vllm_config: VllmConfig, extra: Mapping[str, Any]) -> bool:
    """Whether peers of this host may read the cache where it lies."""
    return vllm_config.device_config.device_type == "cpu" and extra.get("transport", AUTO) in (AUTO, "shm")


def _is_windowed(kv_cache_config: KVCacheConfig) -> bool:
    """Whether every layer has a sliding window, so that vLLM gives blocks away that lie before it."""
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    return any(isinstance(group.kv_cache_spec, SlidingWindowSpec) for group in kv_cache_config.kv_cache_groups)


def _digest(request: Request) -> str:
    keys = [request.lora_request.lora_name] if request.lora_request is not None else [""]
    keys += [feature.identifier for feature in request.mm_features or ()]
    return prompt_digest(request.all_token_ids[: _num_known(request)], *keys)


def _num_known(request: Request) -> int:
    """Count the tokens a request came with: its prompt, and the output that another engine made of it."""
    extra = request.sampling_params.extra_args if request.sampling_params is not None else None
    return int(request.num_prompt_tokens) + len((extra or {}).get(RESUMED_TOKENS) or ())
