"""The configuration tree of Baton: every key of the YAML is a field here, with range, default and meaning.

Owns shape and ranges. Must not read files, the environment or flags: core.config.load does, and adds the
checks that span several keys (core.config.checks). docs/configuration.md is made from the descriptions here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraConfig(Section):
    """One LoRA adapter served beside the base model, in both pools."""

    name: Name = Field(description="name clients use as `model`")
    path: str = Field(min_length=1, description="folder of the adapter")


class ModelConfig(Section):
    """What is served."""

    path: str = Field(
        default="deploy/models/baton-demo",
        min_length=1,
        description="folder in Hugging Face format, from the working directory or the checkout, or a hub id",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="name clients use as `model`; null: the last part of `model.path`",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of weights and KV; auto: what the model's own files say"
    )
    max_model_len: int | None = Field(
        default=None,
        ge=16,
        le=1 << 24,
        description="tokens of prompt and output together; null: the model's own limit",
    )
    block_size: int = Field(default=32, ge=16, le=256, multiple_of=16, description="tokens in one KV block")
    lora: tuple[LoraConfig, ...] = Field(default=(), description="LoRA adapters served beside the base model")
    engine_args: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="further flags of `vllm serve`, without the leading dashes; true gives the flag alone, "
        "false its `no-` form",
    )


class SLOClass(Section):
    """One promise: at least `attainment` of the class's requests meet both targets."""

    ttft_ms: float = Field(ge=1, le=3_600_000, description="target for the time to the first token")
    tpot_ms: float = Field(ge=0.1, le=600_000, description="target for the mean time per output token after the first")
    attainment: float = Field(default=0.9, gt=0, le=1, description="share of requests that meet both targets")
    tier: Literal["protected", "standard", "best_effort"] = Field(
        default="standard",
        description="who gives way when not every promise can be kept: protected classes are never refused or delayed "
        "for the others, best_effort takes what they leave",
    )


class SLOConfig(Section):
    """The promise, by class."""

    classes: dict[Name, SLOClass] = Field(
        default_factory=lambda: {"interactive": SLOClass(ttft_ms=1000, tpot_ms=100)},
        min_length=1,
        description="the classes of requests, by name",
    )
    default: Name | None = Field(
        default=None, description="class of requests that name none; null: the first one listed"
    )


class PoolConfig(Section):
    """One pool of equal workers."""

    replicas: int = Field(
        default=1, ge=0, le=4096, description="number of workers; 0 prefill workers: decode workers run prompts too"
    )
    tensor_parallel: int = Field(
        default=1, ge=1, le=64, description="GPUs that share each layer of one worker; equal in both pools"
    )
    pipeline_parallel: int = Field(
        default=1, ge=1, le=64, description="groups of layers on GPUs of their own; equal in both pools"
    )
    max_num_seqs: int = Field(default=64, ge=1, le=65536, description="requests in one engine step")
    max_num_batched_tokens: int = Field(default=2048, ge=32, le=1 << 20, description="tokens in one engine step")
    shared_step_tokens: int | None = Field(
        default=None,
        ge=32,
        le=1 << 20,
        description="most tokens of one prompt in a step that other requests share, so that short prompts need not "
        "wait for a long one; null: three quarters of a step on prefill workers, no limit on decode workers",
    )
    kv_cache_mb: int | None = Field(
        default=None,
        ge=8,
        le=1 << 24,
        description="KV cache of one worker; null: 512 on a CPU, the engine's own choice on a GPU",
    )
    cpus: float = Field(default=1, ge=0, le=1024, description="CPU cores of one worker")
    gpus: int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="GPUs of one worker; null: tensor_parallel x pipeline_parallel if any exist",
    )
    node_resource: str | None = Field(
        default=None, min_length=1, description="custom Ray resource that the pool's nodes must carry"
    )


class PoolsConfig(Section):
    """The two pools."""

    prefill: PoolConfig = Field(default=PoolConfig(), description="workers that run prompts")
    decode: PoolConfig = Field(default=PoolConfig(), description="workers that make output tokens")


def _pools_form(value: object) -> str:
    """Say which form of `pools` a value is meant as, so that only that one's errors are reported."""
    return "auto" if isinstance(value, str) else "named"


Pools = Annotated[
    Annotated[PoolsConfig, Tag("named")] | Annotated[Literal["auto"], Tag("auto")], Discriminator(_pools_form)
]


class PlanConfig(Section):
    """What `baton plan`, and `baton up` with `pools: auto`, plan with and for."""

    profile: str | None = Field(
        default=None, min_length=1, description="file that `baton profile` wrote; null: the device named in `plan.gpu`"
    )
    gpu: str | None = Field(
        default=None,
        min_length=1,
        description="kind of GPU to plan for without a profile; null: the kind that the cluster has",
    )
    gpus: int | None = Field(
        default=None, ge=1, le=65536, description="GPUs to plan with; null: `up` takes all that the cluster has"
    )
    gpus_per_node: int | None = Field(
        default=None, ge=1, le=1024, description="GPUs of one machine; null: as the cluster has, else 8"
    )
    price_per_hour: float | None = Field(
        default=None, gt=0, le=1_000_000, description="price of one GPU for an hour; null: plans are compared by GPUs"
    )
    workload: Literal["chat", "code", "summarize", "agent", "mixed"] | None = Field(
        default=None, description="kind of traffic to expect; null: that of `plan.trace`, else chat"
    )
    trace: str | None = Field(default=None, min_length=1, description="file of recorded traffic to expect")
    rate: float | None = Field(
        default=None, gt=0, le=10_000_000, description="requests per second to carry; null: as many as possible"
    )
    network_gbit_s: float | None = Field(
        default=None, gt=0, le=1_000_000, description="network between machines; null: what the device's data say"
    )
    cpus: float = Field(default=1, ge=0, le=1024, description="CPU cores of one worker that is planned")
    kv_cache_mb: int | None = Field(
        default=None,
        ge=8,
        le=1 << 24,
        description="KV cache of one worker that is planned; null: 512 on a CPU, the engine's own choice on a GPU",
    )


class KVConfig(Section):
    """How KV blocks are handed over from prefill to decode."""

    transport: Literal["auto", "nccl", "shm", "nixl", "tcp", "grpc", "none"] = Field(
        default="auto",
        description="how the bytes travel; auto: the one that is measured fastest of those that both ends can do, for "
        "each pair; a named one is all that is used, save that a hand-over it failed in goes on over grpc; nccl and "
        "nixl are not seen on a GPU yet; none: nothing is handed over, for models that cannot be, and without prefill "
        "workers",
    )
    lease_s: float = Field(
        default=30.0, gt=0.1, le=3600, description="how long either side holds blocks for one hand-over"
    )
    staging_mb: int = Field(
        default=1024,
        ge=16,
        le=1 << 20,
        description="bound of KV bytes that wait to be sent, per worker; allocated as needed",
    )
    allow_faults: bool = Field(
        default=False,
        description="let `baton chaos` break hand-overs of this cluster on purpose: lose, corrupt and withhold frames",
    )
    self_test: bool = Field(
        default=True,
        description="before a pair of workers takes requests, have it answer two short prompts as its decode worker "
        "alone does; engines that are simulated are not tested",
    )
    verify_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of hand-overs whose blocks are compared end to end, prefill's cache with decode's, beside "
        "the first few of each pair of workers; 0: none at all",
    )


class RouterConfig(Section):
    """The HTTP front."""

    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 for any free one")
    policy: Name = Field(default="slo-aware", description="how a request's workers are chosen, see docs/router.md")
    whole_below_tokens: int = Field(
        default=0,
        ge=0,
        le=1 << 24,
        description="prompts up to this length, as the router estimates it, are served whole by a decode worker",
    )
    event_log: str | None = Field(
        default=None,
        min_length=1,
        description="file for every routing decision and what it was based on, as JSON lines; relative: in the folder "
        "of the run",
    )
    record: str | None = Field(
        default="traffic.jsonl",
        min_length=1,
        description="file for lengths, times and hashed beginnings of requests, never text, for `baton simulate`; "
        "relative: in the folder of the run; null: nothing is recorded",
    )
    record_mb: float = Field(default=64, ge=1, le=65536, description="what that file and the one before it may take")
    max_body_mb: float = Field(default=16, gt=0, le=120, description="largest request body")
    max_concurrent_requests: int = Field(
        default=4096, ge=1, le=1 << 20, description="requests in flight before new ones are refused"
    )
    request_timeout_s: float = Field(default=600, gt=0, le=86_400, description="longest life of one request")
    admission: bool = Field(
        default=True, description="refuse requests that are predicted to miss their SLO, if the policy predicts"
    )
    max_held_requests: int = Field(
        default=1024, ge=0, le=1 << 20, description="requests that wait in the router until a worker has room"
    )
    prefix_index_mb: float = Field(
        default=64, ge=0, le=65536, description="memory for what is known of the workers' prefix caches; 0: none"
    )
    explained_requests: int = Field(
        default=2048, ge=0, le=1 << 20, description="ended requests that `baton explain` can still tell of"
    )
    tenants: str | None = Field(
        default=None,
        min_length=1,
        description="file of tenants with their hashed API keys and limits; null: no key is asked for",
    )
    tls_cert: str | None = Field(
        default=None, min_length=1, description="PEM file of the certificate chain; null: no TLS"
    )
    tls_key: str | None = Field(default=None, min_length=1, description="PEM file of its private key")
    otlp_endpoint: str | None = Field(
        default=None, min_length=1, description="URL that takes OpenTelemetry traces by HTTP; null: none are sent"
    )


class SecurityConfig(Section):
    """TLS between Baton's own processes; the paths are read on every node, so the files must be there on each."""

    ca: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file of the authority that signs the components' certificates; null: no TLS between "
        "components, the cluster token only",
    )
    cert: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file of a component's certificate chain; at this path on every node",
    )
    key: str | None = Field(default=None, min_length=1, description="PEM file of its private key, without a password")
    name: Name = Field(default="baton", description="DNS name that the certificates carry, whatever the addresses are")


class RayConfig(Section):
    """The Ray cluster underneath."""

    address: str = Field(
        default="auto",
        min_length=1,
        description="auto: join the running Ray, or start one here; else host:port",
    )
    dashboard: bool = Field(default=False, description="start Ray's dashboard when Baton starts Ray")
    wait_for_nodes_s: float = Field(
        default=0,
        ge=0,
        le=86_400,
        description="when the workers do not fit on the nodes there are, ask Ray's autoscaler for more and wait this "
        "long for them; 0: nothing is asked for, and what does not fit is refused at once",
    )
    start_timeout_s: float = Field(default=300, gt=0, le=86_400, description="time until every worker must be ready")
    near: bool = Field(
        default=False,
        description="put prefill and decode workers side by side on each node as far as they fit, for networks that "
        "are slow beside what a node has inside; false: each worker goes where most is free",
    )


class HealingConfig(Section):
    """What becomes of workers that end without being told to."""

    first_delay_s: float = Field(
        default=0.5, ge=0.01, le=3600, description="time until a worker that ended is started again; doubled each time"
    )
    max_delay_s: float = Field(default=30, ge=0.01, le=3600, description="longest of those times")
    max_failures: int = Field(
        default=5, ge=1, le=1000, description="failures within `window_s` after which a worker is set aside"
    )
    window_s: float = Field(default=600, gt=0, le=86_400, description="how long a failure counts")
    set_aside_s: float = Field(
        default=900, gt=0, le=86_400, description="time until a worker that was set aside is tried again"
    )
    silence_s: float = Field(
        default=10,
        ge=1,
        le=600,
        description="a worker, or the machine it is on, that was silent for this long is given up and placed anew; "
        "the router leaves it out much sooner",
    )
    step_limit_s: float = Field(
        default=300,
        ge=5,
        le=86_400,
        description="an engine that has requests and ends no step for this long is started anew, however busy it is",
    )
    standby: bool = Field(
        default=False,
        description="keep a second process beside each worker that has the engine's libraries loaded and waits, so "
        "that a worker that ended is back without that wait; takes their memory once more",
    )


class PoolRange(Section):
    """How far one pool may be resized."""

    min: int = Field(default=1, ge=0, le=4096, description="least workers, whatever the traffic")
    max: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="most workers; null: as many as the nodes there are have room for; with ray.wait_for_nodes_s a "
        "pool that has a max grows to it on nodes that Ray's autoscaler makes",
    )


class ScalingConfig(Section):
    """Whether and how far the controller changes sizes and roles by itself."""

    mode: Literal["off", "advise", "auto"] = Field(
        default="off",
        description="off: pools stay as they are told; advise: decisions are shown and not carried out; auto: they are",
    )
    interval_s: float = Field(default=5, ge=1, le=3600, description="time between two decisions")
    prefill: PoolRange = Field(default=PoolRange(), description="the prefill pool")
    decode: PoolRange = Field(default=PoolRange(), description="the decode pool")


class BatonConfig(Section):
    """The whole file."""

    model: ModelConfig = Field(default=ModelConfig(), description="what is served")
    slo: SLOConfig = Field(default=SLOConfig(), description="the promise, by class of request")
    pools: Pools = Field(
        default=PoolsConfig(),
        description="the prefill and the decode pool; auto: `up` plans them for the devices that the cluster has",
    )
    plan: PlanConfig = Field(default=PlanConfig(), description="what pools are planned with and for")
    kv: KVConfig = Field(default=KVConfig(), description="how KV blocks are handed over")
    router: RouterConfig = Field(default=RouterConfig(), description="the HTTP front")
    security: SecurityConfig = Field(default=SecurityConfig(), description="TLS between Baton's own processes")
    ray: RayConfig = Field(default=RayConfig(), description="the Ray cluster underneath")
    healing: HealingConfig = Field(default=HealingConfig(), description="what becomes of workers that end")
    scaling: ScalingConfig = Field(default=ScalingConfig(), description="sizes and roles that follow the traffic")
