"""Certificates between components: what is checked, and errors that name their key."""

from __future__ import annotations

import ssl
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from core.component_tls import ComponentTLS, tls_from_json, tls_remedy
from core.errors import ConfigError
from tests.support.certificates import Authority, make_pair


@pytest.fixture
def tls(tmp_path: Path) -> ComponentTLS:
    return Authority(tmp_path).component("node")


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[str | None, object]:
    """Run the handshake in memory; return the version and the client's certificate as the server sees it."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    )
    for _ in range(4):  # flights of TLS 1.3: two of the client's, one of the server's
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1].version(), ends[1].getpeercert()


def test_both_ends_show_a_certificate_in_tls_1_3(tls: ComponentTLS) -> None:
    client = tls.for_clients()
    version, shown = shake_hands(tls.for_servers(), client.context, client.server_name or "")
    assert version == "TLSv1.3"
    assert shown
    assert client.server_name == "baton"


def test_a_client_without_a_certificate_is_refused(tls: ComponentTLS) -> None:
    client = ssl.create_default_context(cafile=tls.ca)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(tls.for_servers(), client, "baton")


def test_a_client_of_another_authority_is_refused(tls: ComponentTLS, tmp_path: Path) -> None:
    pair = Authority(tmp_path, "other").issue("foreign")
    foreign = replace(tls, cert=str(pair.cert), key=str(pair.key))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tls.for_servers(), foreign.for_clients().context, "baton")


def test_a_server_of_another_name_is_not_trusted(tls: ComponentTLS) -> None:
    client = replace(tls, name="other").for_clients()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch") as caught:
        shake_hands(tls.for_servers(), client.context, client.server_name or "")
    assert "security.name" in tls_remedy(str(caught.value))


def test_old_versions_are_not_spoken(tls: ComponentTLS) -> None:
    client = tls.for_clients().context
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(tls.for_servers(), client, "baton")


def test_the_texts_for_grpc_are_those_of_the_files_and_are_not_shown(tls: ComponentTLS) -> None:
    texts = tls.pem()
    found = tuple(Path(path).read_bytes() for path in (tls.ca, tls.cert, tls.key))
    assert (texts.ca, texts.cert, texts.key) == found
    assert "PRIVATE" not in repr(texts)


def test_json_gives_back_an_equal_value(tls: ComponentTLS) -> None:
    assert tls_from_json(asdict(tls)) == tls
    assert tls_from_json(None) is None


def test_errors_name_their_key(tls: ComponentTLS, tmp_path: Path) -> None:
    other = make_pair(tmp_path, "other")
    locked = make_pair(tmp_path, "locked", password=b"x")
    cases = {
        r"^security\.ca: there is no file": replace(tls, ca=str(tmp_path / "none")),
        r"^security\.ca: .* holds no certificate; name the PEM file": replace(tls, ca=tls.key),
        r"^security\.cert: .* is a folder": replace(tls, cert=str(tmp_path)),
        r"^security\.key: .* is not the key of the certificate": replace(tls, key=str(other.key)),
        r"^security\.key: the key is encrypted": replace(tls, cert=str(locked.cert), key=str(locked.key)),
    }
    for words, broken in cases.items():
        for use in (broken.for_servers, broken.for_clients, broken.pem):
            with pytest.raises(ConfigError, match=words):
                use()


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required", "must have signed"),
        ("SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED", "not signed by"),
        ("Custom verification check failed: Hostname Verification Check failed.", "security.name"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "does not speak TLS"),
        ("[SSL: NO_SHARED_CIPHER]", "of one authority"),
        ("Connection refused", ""),
    ],
)
def test_the_remedy_fits_what_was_said(said: str, remedy: str) -> None:
    found = tls_remedy(said)
    assert remedy in found
    assert bool(remedy) == bool(found)
