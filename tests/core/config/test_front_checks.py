"""What the front's keys name: the tenants file, the certificate, the address of traces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.config.checks import check_across
from core.config.tenants import digest_of
from core.config.yaml_text import read_yaml
from tests.support.certificates import make_pair

HASH = digest_of("a key").hex()


def breaches(yaml: str, base: Path) -> list[tuple[str, str]]:
    tree, problems = read_yaml(yaml, file="a.yaml")
    assert problems == []
    return [(problem.path, problem.message) for problem in check_across(tree, base=base)]


def test_nothing_is_asked_of_what_is_not_named(tmp_path: Path) -> None:
    assert breaches("router: {port: 1}", tmp_path) == []


def test_a_tenants_file_that_is_missing_is_a_problem_of_the_key(tmp_path: Path) -> None:
    found = breaches("router: {tenants: none.yaml}", tmp_path)
    assert found == [("router.tenants", f"{tmp_path}/none.yaml: there is no such file")]


def test_a_tenants_file_is_read_through_and_its_classes_compared(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(f"tenants: {{a: {{keys: ['{HASH}'], weight: 0, classes: [chat, batch]}}}}")
    yaml = "router: {tenants: t.yaml}\nslo: {classes: {chat: {ttft_ms: 1, tpot_ms: 1}}}"
    assert breaches(yaml, tmp_path) == [
        ("tenants.a.weight", "is out of range"),
        ("tenants.a.classes[1]", "is not one of slo.classes"),
    ]
    (tmp_path / "t.yaml").write_text(f"tenants: {{a: {{keys: ['{HASH}'], classes: [interactive]}}}}")
    assert breaches("router: {tenants: t.yaml}", tmp_path) == []  # the class that there is by default


def test_a_good_pair_is_accepted(tmp_path: Path) -> None:
    make_pair(tmp_path, "a")
    assert breaches("router: {tls_cert: a.crt, tls_key: a.key}", tmp_path) == []


@pytest.mark.parametrize(
    ("cert", "key", "path", "message"),
    [
        ("a.crt", None, "router.tls_cert", "needs router.tls_key beside it"),
        (None, "a.key", "router.tls_key", "needs router.tls_cert beside it"),
        ("none.crt", "a.key", "router.tls_cert", "there is no file"),
        ("a.crt", "none.key", "router.tls_key", "there is no file"),
        (".", "a.key", "router.tls_cert", "is a folder"),
        ("a.crt", "b.key", "router.tls_key", "is not the key of the certificate"),
        ("a.key", "a.key", "router.tls_cert", "holds no certificate in PEM form"),
        ("a.crt", "a.crt", "router.tls_key", "holds no private key in PEM form"),
        ("a.crt", "locked.key", "router.tls_key", "the key is encrypted"),
    ],
)
def test_certificate_and_key_must_fit(
    tmp_path: Path, cert: str | None, key: str | None, path: str, message: str
) -> None:
    make_pair(tmp_path, "a")
    make_pair(tmp_path, "b")
    make_pair(tmp_path, "locked", password=b"secret")
    given = {"tls_cert": cert, "tls_key": key}
    words = ", ".join(f"{name}: {file}" for name, file in given.items() if file)
    [(where, found)] = breaches(f"router: {{{words}}}", tmp_path)
    assert where == path
    assert message in found


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_of_others_cannot_be_read(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "a")
    pair.key.chmod(0)
    [(path, message)] = breaches("router: {tls_cert: a.crt, tls_key: a.key}", tmp_path)
    assert (path, "cannot be read" in message) == ("router.tls_key", True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("collector:4318", "must begin with http:// or https://"),
        ("grpc://collector:4317", "must begin with http:// or https://"),
        ("http://", "names no host"),
        ("http://collector:many", "is no URL"),
        ("http://[::1", "is no URL"),
        ("http://a b/", "must not hold spaces"),
        ("http://collector:99999", "is no URL"),
    ],
)
def test_the_address_of_traces_must_be_one(tmp_path: Path, url: str, message: str) -> None:
    [(path, found)] = breaches(f"router: {{otlp_endpoint: '{url}'}}", tmp_path)
    assert path == "router.otlp_endpoint"
    assert message in found


@pytest.mark.parametrize("url", ["http://collector:4318/v1/traces", "https://[::1]/x", "http://10.0.0.1"])
def test_good_addresses_of_traces(tmp_path: Path, url: str) -> None:
    assert breaches(f"router: {{otlp_endpoint: '{url}'}}", tmp_path) == []
