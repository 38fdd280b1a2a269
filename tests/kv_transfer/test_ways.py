"""Which transports an engine makes, and what it believes of a peer's word on its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kv_transfer.ways as ways
from core.errors import ConfigError, CorruptFrame
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.staging import StagingPool
from kv_transfer.ways import PeerTransports, TransportContext, host_identity, make_transports


@pytest.fixture
def context(tmp_path: Path) -> Iterator[TransportContext]:
    pool = StagingPool(1)
    yield TransportContext("secret", pool, tmp_path)
    pool.close()


async def _no_control(verb: str, arguments: dict[str, str]) -> dict[str, object]:
    raise ValueError(verb)


def on_gpu(context: TransportContext) -> TransportContext:
    return replace(context, device="cuda:0")


def made(context: TransportContext, wanted: str, *, encrypted: bool = False) -> list[str]:
    grpc = GrpcTransport(_no_control, token=context.token)
    return [transport.name for transport in make_transports(wanted, grpc, context, encrypted=encrypted)]


def test_auto_makes_all_and_a_name_that_one_and_grpc(context: TransportContext) -> None:
    assert made(context, "auto") == ["shm", "tcp", "grpc"]
    assert made(context, "tcp") == ["tcp", "grpc"]
    assert made(context, "grpc") == ["grpc"]


def test_with_certificates_nothing_crosses_the_network_in_the_clear(context: TransportContext) -> None:
    assert made(context, "auto", encrypted=True) == ["shm", "grpc"]
    assert made(context, "shm", encrypted=True) == ["shm", "grpc"]
    with pytest.raises(ConfigError, match=r"kv\.transport: tcp does not encrypt"):
        made(context, "tcp", encrypted=True)


def test_nccl_is_for_gpus_whose_torch_has_it(context: TransportContext, monkeypatch: pytest.MonkeyPatch) -> None:
    for has_nccl in (False, True):
        monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda has_nccl=has_nccl: has_nccl)
        assert [name for name in made(on_gpu(context), "auto") if name != "nixl"] == [
            *["nccl"][not has_nccl :],
            *("shm", "tcp", "grpc"),
        ]
        with pytest.raises(ConfigError, match=r"kv\.transport: nccl .* cpu memory; set kv\.transport to auto"):
            made(context, "nccl")
    assert made(on_gpu(context), "nccl") == ["nccl", "grpc"]
    assert made(on_gpu(context), "auto", encrypted=True) == ["shm", "grpc"]


def test_nixl_is_for_gpus_unless_it_is_named(context: TransportContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "missing_nixl", lambda: None)
    assert made(context, "auto") == ["shm", "tcp", "grpc"]
    assert made(context, "nixl") == ["nixl", "grpc"]
    assert made(on_gpu(context), "auto") == ["shm", "nixl", "tcp", "grpc"]
    monkeypatch.setattr(ways, "missing_nixl", lambda: "it is not installed")
    assert made(on_gpu(context), "auto") == ["shm", "tcp", "grpc"]
    with pytest.raises(
        ConfigError, match=r"kv\.transport: nixl cannot be used: it is not installed; set kv\.transport"
    ):
        made(context, "nixl")


def test_an_unknown_transport_is_named_with_those_that_are_known(context: TransportContext) -> None:
    with pytest.raises(
        ConfigError, match=r"kv\.transport names pigeon; known are auto, nccl, shm, nixl, tcp, gloo, grpc"
    ):
        made(context, "pigeon")


def test_a_peers_word_is_read_or_refused() -> None:
    raw = {"host": host_identity(), "epoch": 3, "addresses": {"grpc": "h:1"}}
    assert PeerTransports.parse(raw) == PeerTransports(host_identity(), 3, {"grpc": "h:1"})
    for field, wrong in (("host", 1), ("epoch", "3"), ("addresses", ["h:1"]), ("addresses", {"grpc": 1})):
        with pytest.raises(CorruptFrame):
            PeerTransports.parse(raw | {field: wrong})
    with pytest.raises(CorruptFrame):
        PeerTransports.parse({})
