"""Everything a worker process needs to start, as one JSON document.

Written by the controller (or a test), read by cluster.worker_process. Paths are absolute.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from core.component_tls import ComponentTLS, tls_from_json
from core.types import Role


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How the engine inside a worker is built."""

    kind: str  # "vllm" | "simulated"
    model_path: str
    served_model_name: str
    dtype: str = "auto"
    max_model_len: int | None = None
    block_size: int = 32
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    shared_step_tokens: int | None = None  # most tokens of one prompt in a step that others share; None: no limit
    kv_cache_bytes: int | None = None  # None: the engine's own choice (GPU memory fraction)
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    enforce_eager: bool = True
    enable_prefix_caching: bool = True
    lora_adapters: tuple[tuple[str, str], ...] = ()  # (name, path)
    max_lora_rank: int = 16
    extra_args: tuple[str, ...] = ()  # flags of `vllm serve`, e.g. ("--tool-call-parser", "hermes")


@dataclass(frozen=True, slots=True)
class KVSpec:
    """How a worker hands KV over."""

    transport: str = "auto"  # as `kv.transport`, or "none": this worker hands nothing over
    lease_s: float = 30.0
    staging_bytes: int = 1 << 30
    verify_share: float = 0.0  # of hand-overs whose blocks are digested end to end; 0: none
    port: int = 0  # 0: any free port
    faults: tuple[tuple[str, str], ...] = ()  # fault injection for tests: see kv_transfer.faults


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker process."""

    worker_id: str
    role: Role
    epoch: int
    host: str  # address to bind and to be reached at
    run_dir: str  # logs, endpoint files
    engine: EngineSpec
    port: int = 0  # session service; 0: any free port
    kv: KVSpec = field(default_factory=KVSpec)
    token: str = ""  # shared secret of the cluster; empty: no check
    tls: ComponentTLS | None = None  # between components; None: the token only
    cpus: tuple[int, ...] = ()  # cores to pin to; empty: no pinning
    silence_s: float = 10.0  # once it is ready, its host ends it when it gave no sign of life for this long
    step_limit_s: float = 300.0  # the most that a step of its engine may take
    revision: str = ""  # of its settings, its model's files and the engine's version
    has_standby: bool = False  # its host keeps a process that has its libraries loaded, for its next life

    def to_json(self) -> str:
        """Serialise; `from_json` gives back an equal value."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerSpec:
        """Parse what `to_json` wrote."""
        raw = json.loads(text)
        engine = raw.pop("engine")
        kv = raw.pop("kv")
        engine["lora_adapters"] = tuple((n, p) for n, p in engine["lora_adapters"])
        engine["extra_args"] = tuple(engine["extra_args"])
        kv["faults"] = tuple((n, v) for n, v in kv["faults"])
        raw["tls"] = tls_from_json(raw["tls"])
        raw["role"] = Role(raw["role"])
        raw["cpus"] = tuple(raw["cpus"])
        return cls(engine=EngineSpec(**engine), kv=KVSpec(**kv), **raw)
