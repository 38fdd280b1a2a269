"""Two KV endpoints on real sockets; every test must end with empty, balanced ledgers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kv_transfer.block_io import BlockIO
from kv_transfer.endpoint import EndpointConfig, KVEndpoint
from kv_transfer.transport import Transport
from tests.support.kv_side import BLOCKS, LAYERS, SHAPE, MakeSide, Side, wait_until


@pytest.fixture(autouse=True)
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    ours = [record for record in caplog.records if record.name.startswith(("grpc", "kv_transfer"))]
    assert [record.getMessage() for record in ours if record.exc_info or record.levelno >= logging.ERROR] == []


@pytest.fixture
def make_side(tmp_path: Path) -> Iterator[MakeSide]:
    sides: list[Side] = []

    def make(
        *,
        fingerprint: str = "fp",
        token: str = "secret",
        staging_bytes: int = 8 << 20,
        seed: int = 0,
        lease_s: float = 30.0,
        group_bytes: int = 0,  # every frame leaves at once
        ack_bytes: int = 1,  # every frame is acknowledged
        transport: str = "auto",
        shape: tuple[int, ...] = SHAPE,  # of a block
        by_device: bool = False,  # as where the host cannot reach the cache
        wrap: Callable[[Transport], Transport] = lambda transport: transport,
        verify_share: float = 0.0,
    ) -> Side:
        generator = torch.Generator().manual_seed(seed)
        cache = {
            f"layer.{i}": torch.randint(0, 255, (BLOCKS, *shape), generator=generator, dtype=torch.uint8)
            for i in range(LAYERS)
        }
        file = tmp_path / f"{len(sides)}.json"
        config = EndpointConfig(
            f"w{len(sides)}",
            1,
            "127.0.0.1",
            0,
            str(file),
            fingerprint,
            token,
            lease_s,
            staging_bytes,
            group_bytes,
            ack_bytes,
            transport,
            verify_share=verify_share,
        )
        endpoint = KVEndpoint(config, BlockIO(cache, by_device=by_device), wrap=wrap)
        address = endpoint.start()
        assert json.loads(file.read_text())["address"] == address
        sides.append(Side(endpoint, cache, address))
        return sides[-1]

    yield make
    try:
        for side in sides:
            if side.endpoint.is_alive:
                wait_until(side.idle)
            side.poll()
            assert side.endpoint.ledger.blocks().imbalance == 0
            assert side.endpoint.ledger.bytes().imbalance == 0
            assert side.endpoint.ledger.blocks().held == 0
            assert side.endpoint.ledger.imbalances == 0
    finally:
        for side in sides:
            side.endpoint.close()
            side.endpoint.io.close()
