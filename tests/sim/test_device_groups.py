"""Devices: from profiles or known GPUs, in nodes, with prices and links; and what is said when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.config.models import BatonConfig
from core.errors import ConfigError
from core.latency.profile import profile_to_json
from sim.device_groups import GRPC_BYTES_PER_S, DeviceFlags, found_devices, named_devices, profile_file
from tests.support.plans import profile

MODEL = {"path": "somewhere/m"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    names = []
    for device in ("gpu-a", "gpu-b"):
        file = tmp_path / f"{device}.json"
        file.write_text(profile_to_json(profile(1, 2, device=device)))
        names.append(str(file))
    return names


def config(**sections: object) -> BatonConfig:
    return BatonConfig.model_validate({"model": MODEL, **sections})


def test_nodes_of_eight_unless_said_otherwise(files: list[str]) -> None:
    for flags, nodes, per_node in (
        (DeviceFlags(profiles=(files[0],), counts=(4,)), 1, 4),
        (DeviceFlags(profiles=(files[0],), counts=(16,)), 2, 8),
        (DeviceFlags(profiles=(files[0],), counts=(16,), per_node=4), 4, 4),
    ):
        group = named_devices(config(), flags).groups[0]
        assert (group.nodes, group.devices_per_node, group.profile.device) == (nodes, per_node, "gpu-a")


def test_two_kinds_have_their_own_counts_and_prices(files: list[str]) -> None:
    devices = named_devices(config(), DeviceFlags(tuple(files), counts=(8, 4), prices=(4.5, 1.25)))
    assert [(g.profile.device, g.devices, g.price_per_hour) for g in devices.groups] == [
        ("gpu-a", 8, 4.5),
        ("gpu-b", 4, 1.25),
    ]
    assert devices.priced


def test_the_section_plan_stands_in_for_flags(files: list[str]) -> None:
    plan = {"profile": files[0], "gpus": 6, "gpus_per_node": 3, "price_per_hour": 2.0, "network_gbit_s": 8}
    devices = named_devices(config(plan=plan), DeviceFlags())
    group = devices.groups[0]
    assert (group.nodes, group.devices_per_node, group.price_per_hour, devices.priced) == (2, 3, 2.0, True)
    assert (group.inner_link.bytes_per_s, group.outer_link.bytes_per_s) == (GRPC_BYTES_PER_S, 1e9)
    assert profile_file(config(plan=plan), DeviceFlags()) == files[0]
    assert profile_file(config(plan=plan), DeviceFlags(kinds=("h100-sxm",))) is None


def test_a_fast_network_does_not_make_grpc_faster_but_a_flag_is_taken_at_its_word(files: list[str]) -> None:
    fast = config(plan={"network_gbit_s": 400})
    flags = DeviceFlags(profiles=(files[0],), counts=(1,))
    assert named_devices(fast, flags).groups[0].outer_link.bytes_per_s == GRPC_BYTES_PER_S
    devices = named_devices(fast, DeviceFlags(profiles=(files[0],), counts=(1,), inner_gbit_s=2400, outer_gbit_s=400))
    link = devices.groups[0]
    assert (link.inner_link.bytes_per_s, link.outer_link.bytes_per_s) == (3e11, 5e10)
    assert any("was measured at 2 GB/s" in note for note in devices.notes)


def test_named_pools_say_how_many_devices_there_are(files: list[str]) -> None:
    pools = {"prefill": {"replicas": 2, "tensor_parallel": 2}, "decode": {"replicas": 1, "tensor_parallel": 2}}
    devices = named_devices(config(pools=pools), DeviceFlags(profiles=(files[0],)))
    assert devices.groups[0].devices == 6
    assert devices.notes[0].startswith("planned for 6 devices")


def test_a_profile_of_another_model_is_noted(files: list[str]) -> None:
    other = BatonConfig.model_validate({"model": {"path": "x/other"}})
    notes = named_devices(other, DeviceFlags(profiles=(files[0],), counts=(1,))).notes
    assert notes[0].endswith("is of m; the configuration serves other")
    assert not any("serves" in note for note in named_devices(config(), DeviceFlags((files[0],), counts=(1,))).notes)


def test_a_plan_is_for_one_model(files: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(profile_to_json(profile(1, device="gpu-c", model="hub/other")))
    with pytest.raises(ConfigError, match="of unlike models, m, hub/other"):
        named_devices(config(), DeviceFlags((files[0], str(other)), counts=(4, 4)))
    other.write_text(profile_to_json(profile(1, device="gpu-c", model="hub/M")))
    assert len(named_devices(config(), DeviceFlags((files[0], str(other)), counts=(4, 4))).groups) == 2


def test_a_profile_that_is_still_to_be_measured_is_said_to_be(tmp_path: Path) -> None:
    missing = str(tmp_path / "demo.json")
    with pytest.raises(ConfigError) as caught:
        named_devices(config(), DeviceFlags((missing,), counts=(4,)))
    assert f"there is no profile {missing}: `python baton.py profile CONFIG --out {missing}`" in str(caught.value)


def test_a_known_gpu_and_a_config_json_make_a_profile(tmp_path: Path) -> None:
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    here = BatonConfig.model_validate({"model": {"path": str(tmp_path)}})
    group = named_devices(here, DeviceFlags(kinds=("h100-sxm",), counts=(8,))).groups[0]
    assert group.profile.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert group.profile.shape(1).kv_capacity_tokens > 100_000


def test_a_clusters_nodes_are_grouped_by_size_up_to_the_most_wanted(files: list[str]) -> None:
    plan = {"profile": files[0]}
    groups = found_devices(config(plan=plan), (4, 8, 4), "").groups
    assert [(g.nodes, g.devices_per_node) for g in groups] == [(1, 8), (2, 4)]
    groups = found_devices(config(plan=plan | {"gpus": 10}), (4, 8, 4), "").groups
    assert [(g.nodes, g.devices_per_node) for g in groups] == [(1, 8), (1, 2)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "nothing says how fast m runs: give --profile FILE"),
        ({"kinds": ("h100-sxm",), "counts": (8,)}, "put the model's config.json into a folder"),
        ({"kinds": ("h100-sxm",), "use": 1}, "exclude each other"),
        ({"use": 1, "counts": (8, 8)}, "--gpus is given 2 times for 1 kinds"),
        ({"use": 1, "counts": (12,), "per_node": 8}, "12 devices do not fill nodes of 8"),
        ({"use": 1}, "nothing says how many devices there are: give --gpus N"),
    ],
)
def test_what_is_missing_is_said_with_the_remedy(files: list[str], flags: dict[str, object], words: str) -> None:
    named = {key: value for key, value in flags.items() if key != "use"}
    given = DeviceFlags(profiles=(files[0],) if "use" in flags else (), **named)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        named_devices(config(pools="auto"), given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "device"),
    [("H100", "h100-sxm"), ("NVIDIA H200 141GB", "h200-sxm"), ("NVIDIA A100-SXM4-80GB", "a100-sxm"), ("L40S", "l40s")],
)
def test_the_names_of_drivers_and_of_ray_are_known(kind: str, device: str) -> None:
    here = BatonConfig.model_validate({"model": {"path": "deploy/models/baton-demo"}, "pools": "auto"})
    group = found_devices(here, (2,), kind).groups[0]
    assert (group.profile.device, group.devices) == (device, 2)


def test_a_name_that_may_be_two_devices_is_not_guessed() -> None:
    here = BatonConfig.model_validate({"model": {"path": "deploy/models/baton-demo"}, "pools": "auto"})
    for kind in ("A100", "NVIDIA T4"):
        with pytest.raises(ConfigError, match="known are"):
            found_devices(here, (2,), kind)


def test_an_empty_cluster_is_refused(files: list[str]) -> None:
    with pytest.raises(ConfigError, match="no free device"):
        found_devices(config(plan={"profile": files[0]}), (0, 0), "")
