"""The metrics of a router that has served, and those of the hand-over, as they are really written."""

from __future__ import annotations

from pathlib import Path

import httpx
import torch

from kv_transfer.block_io import BlockIO
from kv_transfer.endpoint import EndpointConfig, KVEndpoint
from kv_transfer.metrics import render
from tests.support.router_site import Site

PROMPT = {"prompt": "the sea was calm", "max_tokens": 5}


async def router_metrics() -> str:
    """Serve some requests, refuse one, and give what /metrics says."""
    site = Site()
    await site.start_router()
    try:
        await site.add_worker("prefill-0")
        await site.add_worker("decode-0")
        async with httpx.AsyncClient(base_url=site.url, timeout=60) as client:
            for stream in (True, False):
                await client.post("/v1/completions", json=PROMPT | {"stream": stream})
            await client.post("/v1/completions", content=b"{")
            return (await client.get("/metrics")).text
    finally:
        await site.stop()


def kv_metrics(folder: Path) -> str:
    """Start one endpoint, hand nothing over, and give what it reports beside vLLM's metrics."""
    file = str(folder / "kv.json")
    config = EndpointConfig("w0", 1, "127.0.0.1", 0, file, "fp", "secret", 5.0, 8 << 20, 0, 1)
    endpoint = KVEndpoint(config, BlockIO({"layer.0": torch.zeros((4, 2, 4, 8), dtype=torch.uint8)}))
    endpoint.start()
    try:
        return render(endpoint.stats())
    finally:
        endpoint.close()
