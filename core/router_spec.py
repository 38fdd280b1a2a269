"""Everything a router process needs to start, as one JSON document.

Written by the controller (or a test), read by `python -m router`. Must not hold live objects.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from core.component_tls import ComponentTLS, tls_from_json
from core.config.model_files import file_location
from core.config.models import BatonConfig, PoolConfig
from core.config.specs import default_slo_class, named_pools
from core.errors import ConfigError
from core.latency.profile import EngineProfile, read_profile
from core.policy.context import ClassTarget, LinkFacts, PolicyContext, PoolFacts, Tier
from core.types import Role


@dataclass(frozen=True, slots=True)
class SLOTarget:
    """One SLO class."""

    name: str
    ttft_s: float
    tpot_s: float
    attainment: float = 0.9
    tier: Tier = Tier.STANDARD


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """One router process."""

    host: str
    membership_address: str  # host:port of the controller's membership service
    run_dir: str  # absolute; the log goes here
    slo_classes: tuple[SLOTarget, ...] = (SLOTarget("interactive", ttft_s=1.0, tpot_s=0.1),)
    slo_default: str = "interactive"
    port: int = 0  # 0: any free port
    policy: str = "least-predicted-work"
    policy_context: PolicyContext = field(default_factory=PolicyContext)
    one_pool: bool = False  # there are no prefill workers, and none is missed
    event_log: str = ""  # file, from run_dir; empty: none
    record: str = ""  # file, from run_dir; empty: none
    record_bytes: int = 64 << 20
    lease_s: float = 30.0
    max_body_bytes: int = 16 << 20
    max_concurrent_requests: int = 4096
    request_timeout_s: float = 600.0
    drain_s: float = 30.0  # how long running requests may take to finish after SIGTERM
    admission: bool = True  # refuse what is predicted to miss its SLO
    max_held_requests: int = 1024
    worker_wait_s: float = 10.0  # while no worker is connected, for one that is announced to come
    prefix_index_bytes: int = 64 << 20
    explained_requests: int = 2048
    tenants_file: str = ""  # absolute; empty: no key is asked for
    tls_cert: str = ""  # absolute; empty: no TLS
    tls_key: str = ""
    otlp_endpoint: str = ""
    token: str = ""  # shared secret of the cluster; empty: no check
    tls: ComponentTLS | None = None  # between components; None: the token only
    events_fd: int | None = None  # JSON lines for the parent process; None: nowhere

    @classmethod
    def from_config(
        cls,
        config: BatonConfig,
        *,
        membership_address: str,
        run_dir: str,
        base: Path | None = None,
        token: str = "",
        tls: ComponentTLS | None = None,
        events_fd: int | None = None,
    ) -> RouterSpec:
        """Take what the router needs out of the configuration, and out of the profile if the policy needs that.

        Relative paths start at `base` (default: the working directory), else at the checkout.

        Raises ConfigError for a profile that cannot be read, or that lacks the size of a pool.
        """
        classes = tuple(
            SLOTarget(name, c.ttft_ms / 1000, c.tpot_ms / 1000, c.attainment, Tier(c.tier))
            for name, c in config.slo.classes.items()
        )
        return cls(
            host=config.router.host,
            port=config.router.port,
            membership_address=membership_address,
            run_dir=run_dir,
            slo_classes=classes,
            slo_default=default_slo_class(config),
            policy=config.router.policy,
            policy_context=_policy_context(config, classes),
            one_pool=named_pools(config).prefill.replicas == 0,
            event_log=config.router.event_log or "",
            record=config.router.record or "",
            record_bytes=int(config.router.record_mb * (1 << 20)),
            lease_s=config.kv.lease_s,
            max_body_bytes=int(config.router.max_body_mb * (1 << 20)),
            max_concurrent_requests=config.router.max_concurrent_requests,
            request_timeout_s=config.router.request_timeout_s,
            admission=config.router.admission,
            max_held_requests=config.router.max_held_requests,
            prefix_index_bytes=int(config.router.prefix_index_mb * (1 << 20)),
            explained_requests=config.router.explained_requests,
            tenants_file=_absolute(config.router.tenants, base),
            tls_cert=_absolute(config.router.tls_cert, base),
            tls_key=_absolute(config.router.tls_key, base),
            otlp_endpoint=config.router.otlp_endpoint or "",
            token=token,
            tls=tls,
            events_fd=events_fd,
        )

    def to_json(self) -> str:
        """Serialise; `from_json` gives back an equal value."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RouterSpec:
        """Parse what `to_json` wrote."""
        raw = json.loads(text)
        raw["policy_context"] = PolicyContext.from_json(json.dumps(raw["policy_context"]))
        raw["slo_classes"] = tuple(SLOTarget(**{**c, "tier": Tier(c["tier"])}) for c in raw["slo_classes"])
        raw["tls"] = tls_from_json(raw["tls"])
        return cls(**raw)


def _absolute(path: str | None, base: Path | None) -> str:
    return file_location(path, base) if path else ""


def _policy_context(config: BatonConfig, classes: tuple[SLOTarget, ...]) -> PolicyContext:
    context = PolicyContext(
        targets={c.name: ClassTarget(c.ttft_s, c.tpot_s, c.tier, c.attainment) for c in classes},
        whole_below_tokens=config.router.whole_below_tokens,
        admit_by_ttft=config.router.admission,
        admit_by_tpot=config.router.admission,
        may_hold=config.router.max_held_requests > 0,
        overflow=True,
    )
    if config.router.policy != "slo-aware":
        return context
    pools = named_pools(config)
    prefill, decode = pools.prefill, pools.decode
    sizes = {Role.PREFILL: prefill if prefill.replicas else decode, Role.DECODE: decode if decode.replicas else prefill}
    if config.plan.profile is None:
        return replace(context, pools={role: _pool_facts(None, pool) for role, pool in sizes.items()})
    profile = read_profile(Path(config.plan.profile))
    gbit_s = config.plan.network_gbit_s
    return replace(
        context,
        pools={role: _pool_facts(profile, pool) for role, pool in sizes.items()},
        link=LinkFacts(s_per_token=8 * profile.kv_bytes_per_token / (gbit_s * 1e9) if gbit_s else 0.0),
        request_overhead_s=profile.request_overhead_s,
        handover_overhead_s=profile.handover_overhead_s,
    )


def _pool_facts(profile: EngineProfile | None, pool: PoolConfig) -> PoolFacts:
    """Take one pool's limits, and its cost where there is a profile: it is learnt where there is none."""
    if profile is None:
        return PoolFacts(None, pool.max_num_seqs, pool.max_num_batched_tokens, stages=pool.pipeline_parallel)
    try:
        shape = profile.shape(pool.tensor_parallel, pool.pipeline_parallel)
    except ConfigError as exc:
        remedy = "measure these pools with `baton profile`, or choose another router.policy"
        raise ConfigError(f"plan.profile: {exc}; {remedy}") from exc
    return PoolFacts(
        shape.cost,
        pool.max_num_seqs,
        pool.max_num_batched_tokens,
        prefill_error=shape.prefill_error,
        decode_error=shape.decode_error,
        stages=pool.pipeline_parallel,
    )
