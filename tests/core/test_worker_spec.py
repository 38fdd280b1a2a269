"""The start document of a worker process survives its journey as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.types import Role
from core.worker_spec import EngineSpec, KVSpec, WorkerSpec

TEXT = st.text(max_size=10)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)
ENGINES = st.builds(
    EngineSpec,
    kind=st.sampled_from(["vllm", "simulated"]),
    model_path=TEXT,
    served_model_name=TEXT,
    max_model_len=st.none() | st.integers(1),
    kv_cache_bytes=st.none() | st.integers(1),
    lora_adapters=PAIRS,
    extra_args=st.lists(TEXT, max_size=3).map(tuple),
)
SPECS = st.builds(
    WorkerSpec,
    worker_id=TEXT,
    role=st.sampled_from(Role),
    epoch=st.integers(0),
    host=TEXT,
    run_dir=TEXT,
    engine=ENGINES,
    kv=st.builds(KVSpec, transport=TEXT, lease_s=st.floats(0.1, 100), staging_bytes=st.integers(1), faults=PAIRS),
    token=TEXT,
    cpus=st.lists(st.integers(0, 255), max_size=4).map(tuple),
)


@given(SPECS)
def test_any_spec_reads_back_equal(spec: WorkerSpec) -> None:
    copy = WorkerSpec.from_json(spec.to_json())
    assert copy == spec
    assert hash(copy) == hash(spec), "lists must have become tuples again"


def test_an_unknown_field_is_refused() -> None:
    engine = EngineSpec(kind="simulated", model_path="m", served_model_name="m")
    spec = WorkerSpec("w", Role.DECODE, epoch=0, host="h", run_dir="/r", engine=engine)
    document = json.loads(spec.to_json())
    document["engine"]["colour"] = "red"
    with pytest.raises(TypeError, match="colour"):
        WorkerSpec.from_json(json.dumps(document))


def test_an_unknown_role_is_refused() -> None:
    engine = EngineSpec(kind="simulated", model_path="m", served_model_name="m")
    spec = WorkerSpec("w", Role.DECODE, epoch=0, host="h", run_dir="/r", engine=engine)
    with pytest.raises(ValueError, match="router"):
        WorkerSpec.from_json(spec.to_json().replace('"decode"', '"router"'))
