"""Keys to tenants, and what a key opens."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from core.config.problems import ConfigErrors
from core.config.tenants import digest_of
from core.errors import Forbidden, Unauthorized
from router.keys import new_key
from router.tenants import ANYBODY, OPERATOR, Tenant, Tenants


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.yaml"


def write(file: Path, **keys: str) -> Path:
    lines = [
        f"  {name}: {{keys: ['{digest_of(key).hex()}'], weight: 2, classes: [chat]}}" for name, key in keys.items()
    ]
    file.write_text("\n".join(["tenants:", *lines]))
    return file


def test_without_a_file_everybody_is_welcome() -> None:
    tenants = Tenants()
    assert not tenants.are_known
    for header in (None, "", "Bearer x", "nonsense"):
        assert tenants.authenticate(header) is ANYBODY
    assert tenants.weights == {"": 1.0}
    assert not tenants.reload()


def test_a_key_finds_its_tenant(file: Path) -> None:
    tenants = Tenants(str(write(file, acme="k1", other="k2")))
    acme = Tenant("acme", weight=2, classes=("chat",))
    for header in ("Bearer k1", "bearer k1", "BEARER  k1 "):
        assert tenants.authenticate(header) == acme
    assert tenants.authenticate(None, "k1") == acme
    assert tenants.authenticate("Bearer k2", "k1").name == "other"
    assert tenants.weights == {"acme": 2, "other": 2}


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer k", "Bearer k1x", "Basic k1", "k1", "Bearer \xff\ud800", "Bearer k1 x"],
)
def test_all_else_is_refused_without_a_word_of_the_key(file: Path, header: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        Tenants(str(write(file, acme="k1"))).authenticate(header)
    assert "k1" not in str(refused.value)


def test_the_hash_of_a_key_opens_nothing(file: Path) -> None:
    with pytest.raises(Unauthorized):
        Tenants(str(write(file, acme="k1"))).authenticate("Bearer " + digest_of("k1").hex())


def test_the_operators_key_opens_beside_those_of_the_file(file: Path) -> None:
    tenants = Tenants(str(write(file, acme="k1")), operator_key="o1")
    assert tenants.reload()
    assert tenants.authenticate("Bearer o1") is OPERATOR
    assert OPERATOR.is_unlimited
    OPERATOR.check_class("anything")
    assert tenants.authenticate("Bearer k1").name == "acme"
    assert tenants.weights == {"acme": 2}
    with pytest.raises(Unauthorized):
        Tenants(str(file)).authenticate("Bearer o1")


def test_nobody_is_the_operator_of_a_router_without_its_key(file: Path) -> None:
    tenants = Tenants(str(write(file, acme="k1")), operator_key="")
    for header in ("Bearer ", "Bearer", None):
        with pytest.raises(Unauthorized):
            tenants.authenticate(header, "")


def test_a_made_key_opens_and_no_two_are_equal(file: Path) -> None:
    first, second = new_key("acme"), new_key("acme")
    assert first.key != second.key
    file.write_text("\n".join(first.lines()[6:9]))
    assert Tenants(str(file)).authenticate(f"Bearer {first.key}").name == "acme"


def test_a_class_of_others_is_forbidden() -> None:
    Tenant("a", classes=("chat",)).check_class("chat")
    Tenant("a").check_class("anything")
    with pytest.raises(Forbidden, match=r"'batch' is not open to tenant a; allowed are chat") as refused:
        Tenant("a", classes=("chat",)).check_class("batch")
    assert (refused.value.param, refused.value.slo_class) == ("x-slo-class", "batch")


def test_reading_again_takes_new_keys_and_drops_old_ones(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tenants = Tenants(str(write(file, acme="k1")), slo_classes=("chat",))
    with caplog.at_level(logging.INFO):
        write(file, other="secret-2")
        assert tenants.reload()
    assert tenants.authenticate("Bearer secret-2").name == "other"
    with pytest.raises(Unauthorized):
        tenants.authenticate("Bearer k1")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("text", ["", "tenants: {}", "tenants: {a: {keys: [secret-3]}}", None])
def test_a_file_that_went_bad_changes_nothing(file: Path, caplog: pytest.LogCaptureFixture, text: str | None) -> None:
    tenants = Tenants(str(write(file, acme="k1")))
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    assert not tenants.reload()
    assert tenants.authenticate("Bearer k1").name == "acme"
    assert "the tenants stay as they were" in caplog.text
    assert "secret" not in caplog.text


def test_classes_must_exist_at_the_start_and_later(file: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"is not one of slo\.classes"):
        Tenants(str(write(file, acme="k1")), slo_classes=("batch",))
