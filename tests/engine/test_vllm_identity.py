"""The connector is told who its worker is, and its endpoint files are read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import StartFailed
from core.types import Role
from core.worker_spec import EngineSpec, KVSpec, WorkerSpec
from engine.vllm_identity import endpoint_files, read_endpoint


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    engine = EngineSpec(kind="vllm", model_path=str(tmp_path), served_model_name="m", tensor_parallel=2)
    return WorkerSpec("w-1", Role.DECODE, 2, "10.0.0.1", str(tmp_path), engine)


def test_the_ranks_addresses_are_joined(spec: WorkerSpec) -> None:
    files = endpoint_files(spec)
    assert [file.name for file in files] == ["w-1.kv.json", "w-1.kv.json.rank1"]
    for port, file in enumerate(files, start=7000):
        file.write_text(json.dumps({"address": f"10.0.0.1:{port}", "layout": "l"}))
    assert read_endpoint(spec) == ("10.0.0.1:7000,10.0.0.1:7001", "l")


@pytest.mark.parametrize("text", [None, "", "{}", '{"address": "a:1"}'])
def test_a_connector_that_left_no_endpoint_is_a_failed_start(spec: WorkerSpec, text: str | None) -> None:
    if text is not None:
        endpoint_files(spec)[0].write_text(text)
    with pytest.raises(StartFailed, match="left no endpoint"):
        read_endpoint(spec)


def test_without_transport_there_is_no_endpoint(spec: WorkerSpec) -> None:
    assert read_endpoint(replace(spec, kv=KVSpec(transport="none"))) == ("", "none")
