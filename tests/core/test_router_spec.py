from __future__ import annotations

from core.config.models import BatonConfig
from core.router_spec import RouterSpec, SLOTarget


def test_json_round_trip() -> None:
    spec = RouterSpec(
        "127.0.0.1", "127.0.0.1:1", "/run", (SLOTarget("a", 1.0, 0.1, 0.95), SLOTarget("b", 2.0, 0.2)), "b", events_fd=3
    )
    assert RouterSpec.from_json(spec.to_json()) == spec


def test_configuration_is_carried_over() -> None:
    config = BatonConfig.model_validate(
        {
            "slo": {"classes": {"chat": {"ttft_ms": 400, "tpot_ms": 40}, "batch": {"ttft_ms": 9000, "tpot_ms": 200}}},
            "router": {"port": 1234, "max_body_mb": 0.5, "request_timeout_s": 9, "max_concurrent_requests": 7},
            "kv": {"lease_s": 12},
        }
    )
    spec = RouterSpec.from_config(config, membership_address="h:1", run_dir="/run", token="t", events_fd=5)
    assert spec == RouterSpec(
        host="127.0.0.1",
        membership_address="h:1",
        run_dir="/run",
        slo_classes=(SLOTarget("chat", 0.4, 0.04, 0.9), SLOTarget("batch", 9.0, 0.2, 0.9)),
        slo_default="chat",
        port=1234,
        lease_s=12.0,
        max_body_bytes=524288,
        max_concurrent_requests=7,
        request_timeout_s=9.0,
        token="t",
        events_fd=5,
    )
