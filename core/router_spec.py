"""Everything a router process needs to start, as one JSON document.

Written by the controller (or a test), read by `python -m router`. Must not hold live objects.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from core.config.models import BatonConfig
from core.config.specs import default_slo_class


@dataclass(frozen=True, slots=True)
class SLOTarget:
    """One SLO class."""

    name: str
    ttft_s: float
    tpot_s: float
    attainment: float = 0.9


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
    lease_s: float = 30.0
    max_body_bytes: int = 16 << 20
    max_concurrent_requests: int = 4096
    request_timeout_s: float = 600.0
    drain_s: float = 30.0  # how long running requests may take to finish after SIGTERM
    token: str = ""  # shared secret of the cluster; empty: no check
    events_fd: int | None = None  # JSON lines for the parent process; None: nowhere

    @classmethod
    def from_config(
        cls,
        config: BatonConfig,
        *,
        membership_address: str,
        run_dir: str,
        token: str = "",
        events_fd: int | None = None,
    ) -> RouterSpec:
        """Take what the router needs out of the configuration."""
        classes = tuple(
            SLOTarget(name, c.ttft_ms / 1000, c.tpot_ms / 1000, c.attainment) for name, c in config.slo.classes.items()
        )
        return cls(
            host=config.router.host,
            port=config.router.port,
            membership_address=membership_address,
            run_dir=run_dir,
            slo_classes=classes,
            slo_default=default_slo_class(config),
            policy=config.router.policy,
            lease_s=config.kv.lease_s,
            max_body_bytes=int(config.router.max_body_mb * (1 << 20)),
            max_concurrent_requests=config.router.max_concurrent_requests,
            request_timeout_s=config.router.request_timeout_s,
            token=token,
            events_fd=events_fd,
        )

    def to_json(self) -> str:
        """Serialise; `from_json` gives back an equal value."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RouterSpec:
        """Parse what `to_json` wrote."""
        raw = json.loads(text)
        raw["slo_classes"] = tuple(SLOTarget(**c) for c in raw["slo_classes"])
        return cls(**raw)
