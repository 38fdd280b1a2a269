"""`baton explain` of a router that speaks TLS, and of one that does not."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cluster.front import keep_for_commands
from cluster.state import STATE_DIR_VARIABLE, ClusterRecord, ProcessIdentity, StateDir
from core.config.models import BatonConfig, RouterConfig
from core.errors import BatonError, ConfigError
from router import explain_command
from tests.support.certificates import Pair, make_pair
from tests.support.router_site import WAIT_S, Site


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path, "front")


@pytest.fixture
async def secure(pair: Pair) -> AsyncIterator[Site]:
    site = Site()
    await site.start_router(tls_cert=str(pair.cert), tls_key=str(pair.key))
    site.url = site.url.replace("http://", "https://")
    await site.add_worker("decode-0")
    yield site
    await site.stop()


async def explain(url: str | None, request_id: str, *, ca: Path | None = None) -> str:
    options = argparse.Namespace(url=url, request_id=request_id, ca=ca, key_file=None, as_json=True)
    async with asyncio.timeout(WAIT_S):
        return await asyncio.to_thread(explain_command.answer, options)


async def test_a_router_with_tls_explains(secure: Site, pair: Pair) -> None:
    trusted = ssl.create_default_context(cafile=str(pair.cert))
    async with httpx.AsyncClient(base_url=secure.url, verify=trusted, timeout=WAIT_S) as client:
        reply = await client.post("/v1/completions", json={"prompt": "the sea", "max_tokens": 2})
    found = json.loads(await explain(secure.url, reply.headers["x-request-id"], ca=pair.cert))
    assert found["request_id"] == reply.headers["x-request-id"]


async def test_a_certificate_that_is_not_trusted_is_told_with_what_to_do(
    secure: Site, pair: Pair, tmp_path: Path
) -> None:
    for ca in (None, make_pair(tmp_path, "other").cert):
        with pytest.raises(BatonError, match=r"is not trusted .*--ca"):
            await explain(secure.url, "r", ca=ca)


async def test_a_plain_router_is_told_from_one_with_tls(pair: Pair) -> None:
    site = Site()
    await site.start_router()
    try:
        with pytest.raises(BatonError, match=r"does not speak TLS .*http://"):
            await explain(site.url.replace("http://", "https://"), "r", ca=pair.cert)
    finally:
        await site.stop()


async def test_a_file_that_cannot_be_read_is_named(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--ca: there is no file"):
        await explain("https://127.0.0.1:1", "r", ca=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^--ca: .* holds no certificate"):
        await explain("https://127.0.0.1:1", "r", ca=pair.key)


async def test_the_router_of_this_checkout_needs_no_flags(
    secure: Site, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    config = BatonConfig(router=RouterConfig(tls_cert=str(pair.cert), tls_key=str(pair.key)))
    keep_for_commands(config, base=tmp_path, run_dir=tmp_path, token="")
    starter = ProcessIdentity.of(os.getpid())
    assert starter is not None
    StateDir(tmp_path).write(ClusterRecord("", False, str(tmp_path), None, starter, url=secure.url))
    with pytest.raises(BatonError, match=r"answered 404: no request 'r9' is known here"):
        await explain(None, "r9")
    with pytest.raises(BatonError, match=r"is not trusted .*--ca"):
        await explain(None, "r9", ca=make_pair(tmp_path, "other").cert)
