from __future__ import annotations

from pathlib import Path

import pytest

from core.config.models import BatonConfig
from core.errors import ConfigError
from core.latency.profile import EngineProfile, ShapeProfile, profile_to_json
from core.policy.context import ClassTarget, LinkFacts, PolicyContext, PoolFacts
from core.policy.registry import policy_named
from core.router_spec import RouterSpec, SLOTarget
from core.types import Role
from tests.support.contexts import COST, context


def test_json_round_trip() -> None:
    spec = RouterSpec(
        "127.0.0.1",
        "127.0.0.1:1",
        "/run",
        (SLOTarget("a", 1.0, 0.1, 0.95), SLOTarget("b", 2.0, 0.2)),
        "b",
        policy_context=context(whole_below_tokens=3),
        events_fd=3,
    )
    assert RouterSpec.from_json(spec.to_json()) == spec


def test_configuration_is_carried_over() -> None:
    config = BatonConfig.model_validate(
        {
            "slo": {"classes": {"chat": {"ttft_ms": 400, "tpot_ms": 40}, "batch": {"ttft_ms": 9000, "tpot_ms": 200}}},
            "router": {
                "port": 1234,
                "max_body_mb": 0.5,
                "request_timeout_s": 9,
                "max_concurrent_requests": 7,
                "whole_below_tokens": 64,
                "event_log": "events.jsonl",
                "record": "requests.jsonl",
                "record_mb": 2,
                "policy": "least-loaded",
                "admission": False,
                "max_held_requests": 0,
                "prefix_index_mb": 1,
                "explained_requests": 5,
                "otlp_endpoint": "http://127.0.0.1:4318",
            },
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
        policy="least-loaded",
        admission=False,
        max_held_requests=0,
        prefix_index_bytes=1 << 20,
        explained_requests=5,
        otlp_endpoint="http://127.0.0.1:4318",
        policy_context=PolicyContext(
            targets={"chat": ClassTarget(0.4, 0.04), "batch": ClassTarget(9.0, 0.2)},
            whole_below_tokens=64,
            admit_by_ttft=False,
            admit_by_tpot=False,
            may_hold=False,
            overflow=True,
        ),
        event_log="events.jsonl",
        record="requests.jsonl",
        record_bytes=2 << 20,
        token="t",
        events_fd=5,
    )


def slo_aware(profile: Path, **pools: object) -> BatonConfig:
    return BatonConfig.model_validate(
        {
            "pools": pools or {"prefill": {"max_num_seqs": 8}, "decode": {"max_num_batched_tokens": 512}},
            "router": {"policy": "slo-aware"},
            "plan": {"profile": str(profile), "network_gbit_s": 8},
        }
    )


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    file = tmp_path / "profile.json"
    shape = ShapeProfile(1, 1, COST, kv_capacity_tokens=1000, prefill_error=0.0, decode_error=0.0)
    known = EngineProfile("m", "d", "e", "s", (shape,), kv_bytes_per_token=1000, handover_overhead_s=0.02)
    file.write_text(profile_to_json(known))
    return file


def test_predicting_policy_gets_the_costs_of_the_profile(profile: Path) -> None:
    spec = RouterSpec.from_config(slo_aware(profile), membership_address="h:1", run_dir="/run")
    known = spec.policy_context
    assert known.pools == {
        Role.PREFILL: PoolFacts(COST, max_num_seqs=8, max_num_batched_tokens=2048),
        Role.DECODE: PoolFacts(COST, max_num_seqs=64, max_num_batched_tokens=512),
    }
    assert known.link == LinkFacts(s_per_token=1e-6)
    assert (known.request_overhead_s, known.handover_overhead_s) == (0.0, 0.02)
    policy_named(spec.policy, known)


def test_predicting_policy_is_told_the_limits_of_pools_without_a_profile() -> None:
    config = BatonConfig.model_validate({"router": {"policy": "slo-aware"}, "pools": {"decode": {"max_num_seqs": 8}}})
    known = RouterSpec.from_config(config, membership_address="h:1", run_dir="/run").policy_context
    assert known.pools == {Role.PREFILL: PoolFacts(None, 64, 2048), Role.DECODE: PoolFacts(None, 8, 2048)}
    assert PolicyContext.from_json(known.to_json()) == known


def test_profile_without_the_size_of_a_pool_is_named(profile: Path) -> None:
    config = slo_aware(profile, prefill={"tensor_parallel": 2}, decode={"tensor_parallel": 2})
    with pytest.raises(ConfigError, match=r"plan\.profile: .* no tp2 pp1; .*`baton profile`"):
        RouterSpec.from_config(config, membership_address="h:1", run_dir="/run")


def test_paths_start_at_the_folder_where_up_was_called(tmp_path: Path) -> None:
    for name in ("front.crt", "front.key", "tenants.yaml"):
        (tmp_path / name).touch()
    config = BatonConfig.model_validate(
        {"router": {"tls_cert": "front.crt", "tls_key": "front.key", "tenants": "tenants.yaml"}}
    )
    spec = RouterSpec.from_config(config, membership_address="h:1", run_dir="/run", base=tmp_path)
    files = (spec.tls_cert, spec.tls_key, spec.tenants_file)
    assert files == tuple(str(tmp_path / name) for name in ("front.crt", "front.key", "tenants.yaml"))
