"""The router as a process, and how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import router
from cluster.membership import MembershipServer
from core.errors import ConfigError
from core.router_spec import RouterSpec
from core.types import Membership
from router.server import RouterServer, bind
from tests.support.certificates import Authority, make_pair
from tests.support.router_site import NEVER, Site

ROOT = Path(router.__file__).parents[1]
PROMPT = {"prompt": "the sea was calm", "max_tokens": 4}
WAIT_S = 30.0


class RouterProcess:
    """`python -m router` with its events."""

    def __init__(self, spec_file: Path, **settings: object) -> None:
        read_fd, write_fd = os.pipe()
        spec = RouterSpec(
            host="127.0.0.1",
            run_dir=str(spec_file.parent),
            events_fd=write_fd,
            **settings,  # type: ignore[arg-type]
        )
        spec_file.write_text(spec.to_json())
        self.events = os.fdopen(read_fd)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "router", "--spec", str(spec_file)],
            cwd=ROOT,
            pass_fds=(write_fd,),
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(write_fd)

    async def event(self) -> dict[str, str]:
        line = await asyncio.to_thread(self.events.readline)
        found: dict[str, str] = json.loads(line)
        return found

    async def ended(self) -> tuple[int, str]:
        _, errors = await asyncio.to_thread(self.process.communicate, timeout=WAIT_S)
        return self.process.returncode, errors

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.events.close()


@pytest.fixture
async def membership() -> AsyncIterator[tuple[MembershipServer, str]]:
    server = MembershipServer(host="127.0.0.1", token="secret")
    port = await server.start()
    yield server, f"127.0.0.1:{port}"
    await server.stop()


async def test_process_serves_and_ends_by_sigterm(
    pair: Site, membership: tuple[MembershipServer, str], tmp_path: Path
) -> None:
    server, address = membership
    server.publish(Membership(1, tuple(w.record for w in pair.workers.values())))
    child = RouterProcess(tmp_path / "spec.json", membership_address=address, token="secret")
    try:
        ready = await child.event()
        assert ready["event"] == "ready"
        async with httpx.AsyncClient(base_url=f"http://{ready['address']}") as client:
            await pair.until_healthy(client)
            assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
        child.process.send_signal(signal.SIGTERM)
        assert await child.ended() == (0, "")
    finally:
        child.close()
    lines = [json.loads(x) for x in (tmp_path / "router.log").read_text().splitlines() if x.startswith("{")]
    assert [(x["event"], x["outcome"], x["leg"]) for x in lines] == [("request", "ok", "pair")]


async def test_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = RouterProcess(tmp_path / "spec.json", membership_address="127.0.0.1:1", port=port)
        try:
            code, errors = await child.ended()
            failed = await child.event()
        finally:
            child.close()
    assert code == 1
    assert (failed["event"], failed["error"]) == ("failed", "config_error")
    assert "router.port" in failed["message"]
    assert str(port) in failed["message"]
    assert "set router.port to another port" in failed["message"]
    assert errors == f"router: {failed['message']}\n"


async def test_unknown_host_is_named() -> None:
    with pytest.raises(ConfigError, match=r"router\.host"):
        bind("192.0.2.1", 0)


async def test_unknown_policy_fails_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"router\.policy"):
        RouterServer(RouterSpec("127.0.0.1", "", "", policy="best"), Site().pool)


async def test_connections_do_not_wait_for_full_packets(site: Site, client: httpx.AsyncClient) -> None:
    """Nagle's algorithm would hold tokens back; the event loop turns it off on every accepted socket."""
    await site.add_worker("decode-0", "--step-ms", "20")
    async with client.stream("POST", "/v1/completions", json=PROMPT | {"stream": True, "max_tokens": 4000}):
        (connection,) = site.router._http.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_stop_lets_running_requests_finish_and_takes_no_new_ones() -> None:
    site = Site()
    await site.start_router()
    await site.add_worker("decode-0", "--step-ms", "20")
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
        request = asyncio.create_task(client.post("/v1/completions", json=PROMPT | {"max_tokens": 20}))
        await site.until(lambda: site.router.dispatcher.num_inflight == 1)
        stopping = asyncio.create_task(site.stop())
        reply = await request
        assert reply.json()["usage"]["completion_tokens"] == 20
        await stopping
        with pytest.raises(httpx.ConnectError):
            await client.get("/live")


async def test_stop_ends_what_does_not_finish_with_an_error() -> None:
    site = Site()
    await site.start_router(drain_s=0.2)
    await site.add_worker("decode-0", "--step-ms", "20")
    await site.add_worker("prefill-0")
    await site.add_worker("decode-1", *NEVER)
    body = PROMPT | {"max_tokens": 4000}
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
        streaming = asyncio.create_task(client.post("/v1/completions", json=body | {"stream": True}))
        await site.until(lambda: site.workers["decode-0"].role.state().num_running == 1)
        waiting = asyncio.create_task(client.post("/v1/completions", json=body))
        await site.until(lambda: site.router.dispatcher.num_inflight == 2)
        await site.stop()
        stream, unary = await streaming, await waiting
    assert json.loads(stream.content.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["type"] == "worker_draining"
    assert (unary.status_code, unary.json()["error"]["message"]) == (503, "the router is shutting down")


async def test_a_cluster_with_certificates_answers(tmp_path: Path) -> None:
    """The router is a process of its own, told by its spec; controller and workers ask for its certificate."""
    tls = Authority(tmp_path).component("node")
    site = Site(tls)
    server = MembershipServer(host="127.0.0.1", token="secret", tls=tls)
    address = f"127.0.0.1:{await server.start()}"
    child = None
    try:
        await site.start_router()
        await site.add_worker("prefill-0")
        await site.add_worker("decode-0")
        server.publish(Membership(1, tuple(w.record for w in site.workers.values())))
        child = RouterProcess(tmp_path / "spec.json", membership_address=address, token="secret", tls=tls)
        ready = await child.event()
        async with httpx.AsyncClient(base_url=f"http://{ready['address']}", timeout=WAIT_S) as client:
            await site.until_healthy(client)
            reply = await client.post("/v1/completions", json=PROMPT)
        assert (reply.status_code, reply.json()["usage"]["completion_tokens"]) == (200, 4)
        child.process.send_signal(signal.SIGTERM)
        assert (await child.ended())[0] == 0
    finally:
        if child is not None:
            child.close()
        await server.stop()
        await site.stop()


async def test_a_router_without_its_certificate_does_not_start(tmp_path: Path) -> None:
    tls = replace(Authority(tmp_path).component("node"), ca=str(tmp_path / "none"))
    child = RouterProcess(tmp_path / "spec.json", membership_address="127.0.0.1:1", tls=tls)
    try:
        code, errors = await child.ended()
    finally:
        child.close()
    assert (code, errors) == (1, f"router: security.ca: there is no file {tmp_path / 'none'}\n")


async def test_tls_on_the_front(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "front")
    site = Site()
    await site.start_router(tls_cert=str(pair.cert), tls_key=str(pair.key))
    try:
        await site.add_worker("decode-0")
        url = site.url.replace("http://", "https://")
        trusted = ssl.create_default_context(cafile=str(pair.cert))
        async with httpx.AsyncClient(base_url=url, verify=trusted, timeout=WAIT_S) as client:
            body = {"prompt": "the sea", "max_tokens": 4, "stream": True}
            reply = await client.post("/v1/completions", json=body)
            assert reply.status_code == 200
            assert reply.text.endswith("data: [DONE]\n\n")
        async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as plain:
            with pytest.raises(httpx.HTTPError):
                await plain.get("/health")
    finally:
        await site.stop()
