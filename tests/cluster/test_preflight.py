"""What is said before anything starts."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.preflight import (
    check_event_log,
    check_model,
    check_plan_files,
    check_policy,
    check_port,
    check_scaling,
    check_transport,
    this_machine,
)
from core.config.models import BatonConfig, KVConfig, LoraConfig, ModelConfig, PlanConfig, RouterConfig, ScalingConfig
from core.control.actions import Decider
from core.errors import ConfigError


def config(path: str, *adapters: str) -> BatonConfig:
    lora = tuple(LoraConfig(name=f"a{i}", path=adapter) for i, adapter in enumerate(adapters))
    return BatonConfig(model=ModelConfig(path=path, lora=lora))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_model_folder_is_found_below_the_base(model: Path, tmp_path: Path) -> None:
    assert check_model(config("models/m"), tmp_path) == str(model)
    assert check_model(config(str(model)), Path("/")) == str(model)


def test_a_hub_id_is_left_to_the_engine(tmp_path: Path) -> None:
    assert check_model(config("Qwen/Qwen3-0.6B"), tmp_path) == "Qwen/Qwen3-0.6B, from the hub or its cache"


@pytest.mark.parametrize("path", ["./m", "/no/such/folder", "~/no/such/folder", "models/m/other"])
def test_a_missing_folder_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no folder {path}"):
        check_model(config(path), tmp_path)


def test_a_folder_without_a_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        check_model(config("models"), tmp_path)


def test_a_missing_adapter_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder \./lora in .*, of adapter a0"):
        check_model(config(str(model), "./lora"), tmp_path)


def test_a_missing_adapter_of_a_hub_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder \./lora in .*, of adapter a0"):
        check_model(config("Qwen/Qwen3-0.6B", "./lora"), tmp_path)


def test_files_to_plan_with_are_missed_when_they_will_be_read(tmp_path: Path) -> None:
    plan = PlanConfig(profile="p.json")
    planned = BatonConfig(pools="auto", plan=plan)
    with pytest.raises(ConfigError, match=r"plan\.profile: there is no file p\.json in .*; `baton profile` measures"):
        check_plan_files(planned, tmp_path)
    with pytest.raises(ConfigError, match=r"plan\.profile"):
        check_plan_files(BatonConfig(plan=plan, router=RouterConfig(policy="slo-aware")), tmp_path)
    check_plan_files(BatonConfig(plan=plan, router=RouterConfig(policy="least-loaded")), tmp_path)
    (tmp_path / "p.json").touch()
    check_plan_files(planned, tmp_path)
    with pytest.raises(ConfigError, match=r"plan\.trace: there is no file /no/t\.csv; correct the path"):
        check_plan_files(BatonConfig(pools="auto", plan=PlanConfig(trace="/no/t.csv")), tmp_path)


def test_traffic_is_no_business_of_a_policy(tmp_path: Path) -> None:
    (tmp_path / "p.json").touch()
    plan = PlanConfig(profile="p.json", trace="/no/t.csv")
    check_plan_files(BatonConfig(plan=plan, router=RouterConfig(policy="slo-aware")), tmp_path)


def test_a_profile_that_is_none_is_told_before_the_router_reads_it(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    predicting = BatonConfig(plan=PlanConfig(profile="p.json"), router=RouterConfig(policy="slo-aware"))
    with pytest.raises(ConfigError, match=r"p\.json: .*`python baton\.py profile` writes such files"):
        check_policy(predicting, tmp_path)
    check_policy(BatonConfig(plan=PlanConfig(profile="p.json"), router=RouterConfig(policy="least-loaded")), tmp_path)


def test_a_policy_learns_what_no_profile_tells(tmp_path: Path) -> None:
    check_policy(BatonConfig(router=RouterConfig(policy="slo-aware")), tmp_path)


@pytest.mark.parametrize("place", ["below/e.jsonl", "..", "{tmp}", "{tmp}/nowhere/e.jsonl", "~/e.jsonl"])
def test_an_event_log_that_cannot_be_made_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"router\.event_log: .*; name a file"):
        check_event_log(BatonConfig(router=RouterConfig(event_log=place.format(tmp=tmp_path))))


def test_a_recording_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"router\.record: .*; name a file"):
        check_event_log(BatonConfig(router=RouterConfig(record="below/traffic.jsonl")))


@pytest.mark.parametrize("place", [None, "e.jsonl", "{tmp}/e.jsonl"])
def test_an_event_log_has_a_file(place: str | None, tmp_path: Path) -> None:
    check_event_log(BatonConfig(router=RouterConfig(event_log=place and place.format(tmp=tmp_path))))


def test_nccl_without_a_gpu_is_refused_with_the_remedy() -> None:
    here = this_machine()
    without, with_gpu = (replace(here, total={"CPU": 2.0, "GPU": count}) for count in (0.0, 1.0))
    nccl = BatonConfig(kv=KVConfig(transport="nccl"))
    with pytest.raises(ConfigError, match=r"kv\.transport: nccl .* no node has a GPU; set kv\.transport to auto"):
        check_transport(nccl, [without, without])
    check_transport(nccl, [without, with_gpu])
    check_transport(BatonConfig(), [without])


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    check_port("0.0.0.0", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"router\.host: cannot listen on 192\.0\.2\.99:.*address of this machine"):
        check_port("192.0.2.99", 0)


def test_this_machine_has_the_cores_this_process_may_use() -> None:
    node = this_machine()
    assert node.total["CPU"] == len(os.sched_getaffinity(0))
    assert node.total == node.free


def test_sizes_do_not_follow_the_traffic_when_nobody_decides_them() -> None:
    automatic = BatonConfig(scaling=ScalingConfig(mode="auto"))
    with pytest.raises(ConfigError, match=r"scaling\.mode: auto needs a decider"):
        check_scaling(automatic, None)
    check_scaling(BatonConfig(), None)


def test_a_decider_that_cannot_be_made_is_known_before_anything_starts() -> None:
    def make(config: BatonConfig) -> Decider:
        raise ConfigError(f"plan.profile: there is no {config.plan.profile}")

    with pytest.raises(ConfigError, match=r"plan\.profile: there is no None"):
        check_scaling(BatonConfig(scaling=ScalingConfig(mode="auto")), make)
    check_scaling(BatonConfig(), make)
