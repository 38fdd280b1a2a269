"""Device files: what ships loads, a written file reads back equal, names may be short, and faults name their field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.latency.device_file import SHIPPED, dump_device, list_devices, load_device


def test_the_usual_gpus_ship() -> None:
    assert {"a100-sxm", "b200-sxm", "h100-sxm", "h200-sxm", "l40s", "rtx-pro-6000"} <= set(list_devices())


@pytest.mark.parametrize("name", list_devices())
def test_every_shipped_file_loads_under_its_name(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert "data sheet" in device.source


@pytest.mark.parametrize("name", list_devices())
def test_shipped_files_stay_small(name: str) -> None:
    assert (SHIPPED / f"{name}.json").stat().st_size < 20_000


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    device = load_device("h100-sxm")
    (tmp_path / "mine.json").write_text(dump_device(device))
    assert load_device(str(tmp_path / "mine.json")) == device


def test_a_gpu_without_measurements_takes_the_slowdowns_of_one_with() -> None:
    plain, base = load_device("l40s"), load_device("h100-sxm")
    assert plain.kernels.gemm_fp8 == base.kernels.gemm_fp8
    assert plain.kernels.peaks != base.kernels.peaks
    assert plain.engine.prefill_error > base.engine.prefill_error


@pytest.mark.parametrize(("short", "name"), [("h100", "h100-sxm"), ("H200_SXM", "h200-sxm"), ("rtx", "rtx-pro-6000")])
def test_a_name_may_be_short(short: str, name: str) -> None:
    assert load_device(short).name == name


@pytest.mark.parametrize("name", ["v100", "", "a100", "h"])
def test_unknown_and_ambiguous_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="h100-sxm"):
        load_device(name)


@pytest.mark.parametrize(
    ("field", "value"), [("memory_bytes", 0), ("memory_bytes", "80 GB"), ("peaks", {}), ("kernels", {}), ("name", None)]
)
def test_a_wrong_field_is_named(tmp_path: Path, field: str, value: object) -> None:
    raw = json.loads((SHIPPED / "h100-sxm.json").read_text())
    if value is None:
        del raw[field]
    else:
        raw[field] = value
    (tmp_path / "bad.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=r"bad\.json: wrong or missing"):
        load_device(str(tmp_path / "bad.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other/1"}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ConfigError, match="device file"):
        load_device(str(tmp_path / "other.json"))
