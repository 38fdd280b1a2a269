"""How a machine's own commands reach the router they started: one certificate is trusted, one key is sent."""

from __future__ import annotations

import asyncio
import shlex
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.front import CERT_FILE, KEY_FILE, Front, curl_line, front_at, front_of, keep_for_commands
from cluster.router_probe import ask_router
from core.cluster_token import operator_key
from core.config.models import BatonConfig, RouterConfig
from core.errors import ConfigError
from tests.support.certificates import Authority, Pair, make_pair
from tests.support.router_site import WAIT_S, Site


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def with_chain(pair: Pair, authority: Authority) -> Pair:
    """Write the authority's certificate below the pair's own, as files of a chain have it."""
    pair.cert.write_text("front of x\n" + pair.cert.read_text() + authority.cert.read_text())
    return pair


def kept(config: BatonConfig, tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    keep_for_commands(config, base=tmp_path, run_dir=run_dir, token="secret")
    return run_dir


def with_tls(pair: Pair, tmp_path: Path) -> Path:
    """Keep what the configuration of a router with TLS asks for; paths in it start at its folder."""
    router = RouterConfig(tls_cert=pair.cert.name, tls_key=pair.key.name)
    return kept(BatonConfig(router=router), tmp_path)


@asynccontextmanager
async def secure(pair: Pair) -> AsyncIterator[str]:
    site = Site()
    await site.start_router(tls_cert=str(pair.cert), tls_key=str(pair.key))
    try:
        yield site.url.removeprefix("http://")
    finally:
        await site.stop()


async def health(front: Front) -> str:
    async with asyncio.timeout(WAIT_S):
        report = await asyncio.to_thread(ask_router, front)
    return report.health if report.health != "no answer" else report.reason


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("[::]:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_plain_router_is_reached_by_its_address_without_a_key(address: str, url: str, tmp_path: Path) -> None:
    assert front_at(address, kept(BatonConfig(), tmp_path)) == Front(url)
    assert not (tmp_path / "run").exists()


async def test_a_certificate_of_an_authority_is_trusted_by_itself(authority: Authority, tmp_path: Path) -> None:
    pair = with_chain(authority.issue("front", dns="baton.example"), authority)
    run_dir = with_tls(pair, tmp_path)
    async with secure(pair) as address:
        front = front_at(address, run_dir)
        assert front.url == f"https://{address}"
        assert await health(front) == "starting"


async def test_another_certificate_of_the_same_authority_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    """The name is not compared, so that whoever signed the certificate must not be trusted with it."""
    run_dir = with_tls(with_chain(authority.issue("front"), authority), tmp_path)
    async with secure(with_chain(authority.issue("other"), authority)) as address:
        assert "certificate verify failed" in await health(front_at(address, run_dir))


async def test_a_renewal_on_disk_locks_nobody_out(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "front")
    run_dir = with_tls(pair, tmp_path)
    async with secure(pair) as address:
        make_pair(tmp_path, "front")
        assert await health(front_at(address, run_dir)) == "starting"


def test_the_key_is_kept_for_its_owner_only_and_never_shown(tmp_path: Path) -> None:
    run_dir = kept(BatonConfig(router=RouterConfig(tenants="tenants.yaml")), tmp_path)
    assert (run_dir / KEY_FILE).stat().st_mode & 0o777 == 0o600
    front = front_of("http://127.0.0.1:1", run_dir)
    assert front.key == operator_key("secret") != ""
    assert front.key not in repr(front)


def test_a_missing_or_broken_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^front\.crt: there is no file"):
        front_of("https://127.0.0.1:1", tmp_path)
    (tmp_path / CERT_FILE).write_text("nothing")
    with pytest.raises(ConfigError, match=r"router\.tls_cert: holds no certificate"):
        front_of("https://127.0.0.1:1", tmp_path)
    (tmp_path / CERT_FILE).write_text(f"{ssl.PEM_HEADER}\nAAAA\n{ssl.PEM_FOOTER}\n")
    with pytest.raises(ConfigError, match=r"router\.tls_cert: .* cannot be used"):
        front_of("https://127.0.0.1:1", tmp_path)


async def words(front: Front, run_dir: Path) -> list[str]:
    async with asyncio.timeout(WAIT_S):
        return shlex.split(await asyncio.to_thread(curl_line, front, run_dir))


async def test_curl_is_told_whom_to_trust_and_by_which_name(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("front", dns="*.example")
    run_dir = with_tls(pair, tmp_path)
    trust = ["curl", "--cacert", str(run_dir / CERT_FILE)]
    async with secure(pair) as address:
        named = await words(front_at(address, run_dir), run_dir)
        port = address.rpartition(":")[2]
        assert named == [*trust, "--connect-to", f"::{address}", f"https://baton.example:{port}"]
    pair = make_pair(tmp_path, "by-address")
    run_dir = with_tls(pair, tmp_path)
    async with secure(pair) as address:
        assert await words(front_at(address, run_dir), run_dir) == [*trust, f"https://{address}"]
    assert await words(front_at(address, run_dir), run_dir) == [*trust, f"https://{address}"]  # it does not answer
    assert await words(Front("http://h:1"), run_dir) == ["curl", "http://h:1"]
