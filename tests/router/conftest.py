from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from core.router_spec import SLOTarget
from tests.support.router_site import NEVER, Site

GENEROUS = SLOTarget("interactive", ttft_s=20.0, tpot_s=5.0)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A router without workers, with targets that a busy machine keeps too."""
    site = Site()
    await site.start_router(slo_classes=(GENEROUS,))
    yield site
    await site.stop()


@pytest.fixture
async def pair(site: Site) -> Site:
    """A router with one prefill and one decode worker."""
    await site.add_worker("prefill-0")
    await site.add_worker("decode-0")
    return site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=site.url, timeout=20) as client:
        yield client


@pytest.fixture
async def official(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
async def tight() -> AsyncIterator[Site]:
    """A router with narrow limits and one pair whose decode never gets its KV."""
    site = Site()
    await site.start_router(
        max_body_bytes=1000,
        max_concurrent_requests=1,
        request_timeout_s=0.3,
        slo_classes=(SLOTarget("a", 1.0, 0.1), SLOTarget("b", 2.0, 0.2)),
        slo_default="b",
    )
    await site.add_worker("prefill-0")
    await site.add_worker("decode-0", *NEVER)
    yield site
    await site.stop()
