"""A plan in a file: only what was planned changes, and what is read back is what was planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.load import load_config
from core.config.models import BatonConfig
from core.errors import ConfigError
from sim.cluster import Admission, ClusterSpec, Routing
from sim.pools_block import planned_keys, pools_yaml, with_plan
from tests.support.plans import apart, pool, together

FILE = """\
# mine
model: {path: x/m}  # a model

pools:   # by hand
  prefill: {replicas: 1, cpus: 2}
  decode:
    replicas: 1
    kv_cache_mb: 999
  # the end of the pools

# the front
router:
  port: 8001
"""


def loaded(text: str, folder: Path) -> BatonConfig:
    file = folder / "c.yaml"
    file.write_text(text)
    return load_config(file, environ={})


def planned(cluster: ClusterSpec, text: str, folder: Path, profile: str | None = None) -> tuple[str, BatonConfig]:
    keys = planned_keys(cluster, loaded(text, folder))
    new = with_plan(text, keys.pools, keys.scalars(profile))
    config = loaded(new, folder)
    assert config.pools == keys.pools
    return new, config


def test_only_the_pools_change_and_comments_stay(tmp_path: Path) -> None:
    text, config = planned(apart(3, 5), FILE, tmp_path)
    for line in ("# mine", "model: {path: x/m}  # a model", "# the front", "  port: 8001", "  # the end of the pools"):
        assert line in text.splitlines()
    assert config.pools != "auto"
    prefill, decode = config.pools.prefill, config.pools.decode
    assert (prefill.replicas, prefill.cpus, prefill.max_num_batched_tokens) == (3, 2, 8192)
    assert (decode.replicas, decode.kv_cache_mb, decode.max_num_batched_tokens) == (5, 999, 2048)
    assert config.router.port == 8001


@pytest.mark.parametrize(
    "text", ["pools: auto\n", "router: {port: 1}\n", "pools: {prefill: {cpus: 2}}\nkv: {}\n", FILE]
)
@pytest.mark.parametrize("cluster", [apart(1, 1), apart(2, 3, hybrid=True), together(4)])
def test_any_form_of_file_takes_any_kind_of_plan(tmp_path: Path, text: str, cluster: ClusterSpec) -> None:
    routed = replace(cluster, routing=Routing(whole_below_tokens=64)) if cluster.prefill else cluster
    _, config = planned(routed, text, tmp_path)
    assert config.pools != "auto"
    assert config.pools.prefill.replicas == (cluster.prefill.replicas if cluster.prefill else 0)
    assert config.router.whole_below_tokens == (64 if cluster.prefill else 0)


def test_to_write_a_plan_twice_is_to_write_it_once(tmp_path: Path) -> None:
    once, _ = planned(apart(3, 5), FILE, tmp_path)
    twice, _ = planned(apart(3, 5), once, tmp_path)
    assert once == twice


def test_the_last_line_always_ends() -> None:
    keys = planned_keys(apart(), BatonConfig())
    assert with_plan("pools: auto", keys.pools, {}).endswith("\n")


def test_a_plan_that_predicts_needs_the_policy_that_can(tmp_path: Path) -> None:
    cluster = apart(routing=Routing(admission=Admission.TTFT))
    profile = tmp_path / "p.json"
    profile.write_text("{}")
    _, config = planned(cluster, FILE, tmp_path, profile=str(profile))
    assert (config.router.policy, config.plan.profile) == ("slo-aware", str(profile))
    _, config = planned(cluster, FILE, tmp_path, profile=None)
    assert config.router.policy == BatonConfig().router.policy
    assert planned_keys(apart(), BatonConfig()).policy is None


def test_pools_that_split_the_model_in_unlike_ways_cannot_be_started() -> None:
    with pytest.raises(ConfigError, match="in unlike ways"):
        planned_keys(replace(apart(), decode=pool(2, tp=2)), BatonConfig())


def test_gpus_follow_the_parallel_size() -> None:
    config = BatonConfig.model_validate({"pools": {"decode": {"gpus": 1}, "prefill": {"gpus": 0}}})
    pools = planned_keys(together(2, tp=4), config).pools
    assert (pools.decode.gpus, pools.prefill.gpus, pools.prefill.tensor_parallel) == (4, 0, 4)


@pytest.mark.parametrize(
    ("device", "memory_mb", "gpus"),
    [("h100-sxm", (None, None), (None, None)), ("cpu-amd-epyc-4-cores", (256, 512), (1, 0))],
)
def test_no_gpu_gets_the_memory_and_devices_of_the_cpu_workers_in_the_file(
    device: str, memory_mb: tuple[int | None, ...], gpus: tuple[int | None, ...]
) -> None:
    named = {"prefill": {"kv_cache_mb": 256, "gpus": 1}, "decode": {"kv_cache_mb": 512, "gpus": 0}}
    config = BatonConfig.model_validate({"pools": named})
    for cluster in (apart(), together(2)):
        prefill = replace(cluster.prefill, device=device) if cluster.prefill else None
        pools = planned_keys(replace(cluster, decode=replace(cluster.decode, device=device), prefill=prefill), config)
        both = (pools.pools.prefill, pools.pools.decode)
        assert tuple(each.kv_cache_mb for each in both) == memory_mb
        assert tuple(each.gpus for each in both) == gpus


def test_no_gpu_gets_the_memory_that_the_section_plan_gives_to_cpu_workers() -> None:
    config = BatonConfig.model_validate({"pools": "auto", "plan": {"kv_cache_mb": 256}})
    cluster = together(2)
    on_gpu = replace(cluster, decode=replace(cluster.decode, device="h100-sxm"))
    assert planned_keys(on_gpu, config).pools.decode.kv_cache_mb is None
    assert planned_keys(cluster, config).pools.decode.kv_cache_mb == 256


def test_a_file_in_braces_is_left_alone() -> None:
    with pytest.raises(ConfigError, match="written in braces"):
        with_plan("{router: {port: 1}}", planned_keys(apart(), BatonConfig()).pools, {})


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(0, 1 << 22))
def test_every_block_is_valid_configuration(prefill: int, decode: int, chunk: int) -> None:
    cluster = replace(apart(prefill, decode), decode=pool(decode, chunk=chunk))
    pools = planned_keys(cluster, BatonConfig()).pools
    for each in (pools.prefill, pools.decode):
        assert each == type(each).model_validate(each.model_dump())
        assert each.max_num_batched_tokens >= each.max_num_seqs
    assert pools_yaml(pools).startswith("pools:\n  prefill:\n    replicas: ")
