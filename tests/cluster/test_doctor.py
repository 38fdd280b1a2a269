"""Doctor asks real KV endpoints, with the token of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cluster.cluster_status import MemberStatus
from cluster.doctor import ask, read_tls, read_token, run
from cluster.kv_diagnosis import findings, page
from core.errors import BatonError
from core.types import Role
from kv_transfer.block_io import BlockIO
from kv_transfer.endpoint import EndpointConfig, KVEndpoint
from kv_transfer.plan import ReceiveOpen, ReceiveParams
from tests.support.certificates import Authority
from tests.support.kv_side import wait_until


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[KVEndpoint]:
    config = EndpointConfig(
        worker_id="decode-0",
        epoch=1,
        host="127.0.0.1",
        port=0,
        endpoint_file=str(tmp_path / "kv.json"),
        fingerprint="f",
        token="secret",
        lease_s=30.0,
        staging_bytes=1 << 20,
    )
    made = KVEndpoint(config, BlockIO({"layer.0": torch.zeros((4, 2, 4, 8), dtype=torch.uint8)}))
    try:
        yield made
    finally:
        made.close()


async def test_an_open_lease_is_shown_and_no_fault(endpoint: KVEndpoint) -> None:
    member = MemberStatus("decode-0", Role.DECODE, "n", "ready", kv_address=endpoint.start())
    endpoint.expect(ReceiveOpen(ReceiveParams("t-1", 30.0), "req-1", "d", 0, 2, (1, 3)))
    wait_until(lambda: bool(endpoint.ledger.open_leases))
    answers = await ask([member, MemberStatus("router", None, "n", "ready")], "secret")
    assert findings(answers) == []
    lines = page(answers, [])
    assert any(line.split()[:4] == ["decode-0", "receive", "t-1", "req-1"] for line in lines)
    assert any(line.split()[2:] == ["blocks", "2", "2", "0", "0", "0"] for line in lines)
    endpoint.cancel_receive("t-1")
    wait_until(lambda: not endpoint.ledger.open_leases)


async def test_engines_that_want_certificates_are_asked_with_the_runs_own(tmp_path: Path) -> None:
    tls = Authority(tmp_path).component("decode")
    (tmp_path / "router.spec.json").write_text(json.dumps({"token": "secret", "tls": asdict(tls)}))
    config = EndpointConfig(
        "decode-0", 1, "127.0.0.1", 0, str(tmp_path / "kv.json"), "f", "secret", 30.0, 1 << 20, tls=read_tls(tmp_path)
    )
    endpoint = KVEndpoint(config, BlockIO({"layer.0": torch.zeros((4, 2, 4, 8), dtype=torch.uint8)}))
    try:
        member = MemberStatus("decode-0", Role.DECODE, "n", "ready", kv_address=endpoint.start())
        assert findings(await ask([member], "secret", read_tls(tmp_path))) == []
        assert len(findings(await ask([member], "secret"))) == 1
    finally:
        endpoint.close()


async def test_who_does_not_answer_and_who_refuses_the_token_are_faults(endpoint: KVEndpoint) -> None:
    address = endpoint.start()
    member = MemberStatus("decode-0", Role.DECODE, "n", "ready", pid=7, kv_address=address)
    (refused,) = findings(await ask([member], "wrong"))
    assert "refused the cluster token" in refused.what
    endpoint.close()
    (gone,) = findings(await ask([member], "secret"))
    assert f"its KV endpoint {address} does not answer" in gone.what


async def test_every_rank_is_asked_and_a_simulated_engine_is_not(endpoint: KVEndpoint) -> None:
    address = endpoint.start()
    two = MemberStatus("decode-0", Role.DECODE, "n", "ready", kv_address=f"{address},{address}")
    simulated = MemberStatus("prefill-0", Role.PREFILL, "n", "ready", kv_address="simulated:prefill-0")
    answers = await ask([two, simulated], "secret")
    assert [(answer.address, answer.stats is not None) for answer in answers] == [
        (address, True),
        (address, True),
        ("", False),
    ]
    assert findings(answers) == []


def test_the_token_is_the_routers(tmp_path: Path) -> None:
    with pytest.raises(BatonError, match="on the machine, that ran `up`"):
        read_token(tmp_path)
    (tmp_path / "router.spec.json").write_text(json.dumps({"token": "secret"}))
    assert read_token(tmp_path) == "secret"


def test_nothing_runs_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATON_STATE_DIR", str(tmp_path))
    assert run(as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "not_running"
