"""The values that everything speaks in."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from core.types import ClusterView, Fingerprint, Membership, Role, Route, WorkerHello, WorkerRecord, WorkerView

FINGERPRINT = Fingerprint(
    engine="vllm 1",
    model="m",
    tokenizer="t",
    dtype="float32",
    cache_dtype="auto",
    block_size=32,
    layout="cpu",
    tensor_parallel=1,
    pipeline_parallel=1,
    adapters="",
)


def view(worker_id: str, role: Role) -> WorkerView:
    """A worker that has just said hello."""
    record = WorkerRecord(worker_id, role, epoch=1, address="127.0.0.1:1", node="here")
    hello = WorkerHello(
        worker_id,
        role,
        epoch=1,
        model="m",
        max_model_len=16,
        kv_address="127.0.0.1:2",
        num_kv_blocks=4,
        fingerprint=FINGERPRINT,
    )
    return WorkerView(record, hello)


@pytest.mark.parametrize("name", [field.name for field in fields(Fingerprint)])
def test_a_difference_in_any_field_is_named(name: str) -> None:
    changed = 2 if isinstance(getattr(FINGERPRINT, name), int) else "other"
    assert FINGERPRINT.differences(replace(FINGERPRINT, **{name: changed})) == (name,)


def test_equal_fingerprints_do_not_differ_and_differences_keep_their_order() -> None:
    assert FINGERPRINT.differences(replace(FINGERPRINT)) == ()
    other = replace(FINGERPRINT, adapters="x", dtype="bfloat16", model="y")
    assert FINGERPRINT.differences(other) == other.differences(FINGERPRINT) == ("model", "dtype", "adapters")


def test_a_view_lists_the_workers_of_a_role_in_order() -> None:
    workers = (view("decode-0", Role.DECODE), view("decode-1", Role.DECODE), view("prefill-0", Role.PREFILL))
    cluster = ClusterView(workers)
    assert cluster.of_role(Role.DECODE) == workers[:2]
    assert cluster.of_role(Role.PREFILL) == workers[2:]
    assert ClusterView().of_role(Role.DECODE) == ()


def test_workers_can_be_left_out_of_a_view() -> None:
    cluster = ClusterView((view("decode-0", Role.DECODE), view("decode-1", Role.DECODE)))
    assert cluster.without(["decode-0", "gone"]).workers == cluster.workers[1:]
    assert cluster.without([]) is cluster


def test_a_new_worker_has_no_load() -> None:
    fresh = view("decode-0", Role.DECODE)
    assert (fresh.state.num_running, fresh.state.draining, fresh.inflight_requests) == (0, False, 0)


def test_values_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Membership(version=1).version = 2  # type: ignore[misc]


def test_a_role_is_written_as_its_name() -> None:
    assert [str(role) for role in Role] == ["prefill", "decode"]
    assert Role("prefill") is Role.PREFILL


def test_routes_compare_by_value() -> None:
    assert Route("d", "p", "why") == Route("d", "p", "why") != Route("d", None, "why")
