"""Endpoints are taken apart, and refused with what to write instead."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from bench.serving.endpoint import api_key, endpoint, trust
from core.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "host", "port", "base", "has_tls"),
    [
        ("http://a:8000", "a", 8000, "", False),
        ("http://a:8000/v1", "a", 8000, "", False),
        ("a:80/", "a", 80, "", False),
        ("https://a.b/gateway/v1/", "a.b", 443, "/gateway", True),
        ("http://[::1]:9", "::1", 9, "", False),
    ],
)
def test_urls(url: str, host: str, port: int, base: str, has_tls: bool) -> None:
    found = endpoint(url)
    assert (found.host, found.port, found.base_path, found.tls is not None) == (host, port, base, has_tls)


def test_a_head_carries_key_and_headers_and_the_key_is_not_shown() -> None:
    found = endpoint("http://[::1]:9/x", key="secret", headers=(("x-a", "b"),))
    head = found.head("POST", "/v1/completions").decode()
    assert head.startswith("POST /x/v1/completions HTTP/1.1\r\nhost: [::1]:9\r\n")
    assert "x-a: b\r\n" in head
    assert "authorization: Bearer secret\r\n" in head
    assert "secret" not in repr(found)


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:99999", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http://"):
        endpoint(url)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("abc\n")
    assert api_key(file, {"OPENAI_API_KEY": "other"}) == "abc"
    assert api_key(None, {"OPENAI_API_KEY": " other "}) == "other"
    assert api_key(None, {}) == ""
    with pytest.raises(ConfigError, match="--key-file"):
        api_key(tmp_path / "none", {})


def test_trust() -> None:
    assert trust(None, insecure=False) is None
    context = trust(None, insecure=True)
    assert context is not None
    assert context.verify_mode is ssl.CERT_NONE
    with pytest.raises(ConfigError, match="--ca"):
        trust(Path("no-such-file"), insecure=False)
