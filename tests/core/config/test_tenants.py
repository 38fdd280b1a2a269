"""The tenants file: every problem at once, and no secret in any message."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.problems import ConfigErrors
from core.config.tenants import TenantConfig, digest_of, read_tenants

SECRET = "baton-this-is-a-secret"
HASH = digest_of(SECRET).hex()
OTHER = digest_of("another").hex()


def problems_of(path: Path, text: str, *classes: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigErrors) as refused:
        read_tenants(path, slo_classes=classes)
    return [str(problem).removeprefix(f"{path}:") for problem in refused.value.problems]


def test_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(
        f"tenants:\n  acme: {{keys: ['{HASH}'], weight: 2, requests_per_minute: 60, classes: [chat]}}\n"
        f"  b: {{keys: ['{OTHER.upper()}']}}\n"
    )
    tenants = read_tenants(file, slo_classes=("chat",)).tenants
    assert tenants["acme"] == TenantConfig(keys=(HASH,), weight=2, requests_per_minute=60, classes=("chat",))
    assert tenants["b"].tokens_per_minute is None


def test_every_problem_is_told_at_once_with_its_line_and_remedy(tmp_path: Path) -> None:
    text = (
        "tenants:\n"
        "  acme:\n"
        f"    keys: ['{SECRET}', '{HASH}', 'abc']\n"
        "    wieght: 2\n"
        "    requests_per_minute: 0\n"
        "    classes: [chta]\n"
        "  b:\n"
        f"    keys: ['{HASH.upper()}']\n"
        "    tokens_per_minute: many\n"
        "  c: {}\n"
    )
    found = problems_of(tmp_path / "t.yaml", text, "chat", "batch")
    remedy = "`baton keys new TENANT` makes a key and the line for this file"
    assert found == [
        f"3: tenants.acme.keys[0]: is a key itself; {remedy}",
        f"3: tenants.acme.keys[2]: is no SHA-256 of 64 hexadecimal digits; {remedy}",
        "4: tenants.acme.wieght: unknown key; allowed: the keys keys, weight, requests_per_minute, tokens_per_minute, "
        "max_concurrent, classes; did you mean weight?",
        "5: tenants.acme.requests_per_minute = 0: is out of range; allowed: whole number from 1 to 1000000000, or null",
        "6: tenants.acme.classes[0] = chta: is not one of slo.classes; did you mean chat?",
        f"8: tenants.b.keys[0]: is tenants.acme.keys[1] too: a key belongs to one tenant; {remedy}",
        "9: tenants.b.tokens_per_minute = many: is text; allowed: whole number from 1 to 1000000000000, or null",
        "10: tenants.c.keys: is required; allowed: list",
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"tenants: {{a: {{keys: {SECRET}}}}}",
        f"tenants: {{a: {{key: {SECRET}}}}}",
        f"tenants: {{a: {{keys: [[{SECRET}]]}}}}",
        f"tenants: {{a: {SECRET}}}",
        f"tenants: {SECRET}",
        f"tokens: {SECRET}",
        f"{SECRET}",
        f"tenants: {{a: {{keys: ['{SECRET}', '{SECRET}']}}}}",
    ],
)
def test_no_message_repeats_a_key(tmp_path: Path, text: str) -> None:
    assert SECRET not in "".join(problems_of(tmp_path / "t.yaml", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty; remove router.tenants, or name a tenant"), ("- a", "mapping of sections (tenants), not a list")],
)
def test_a_file_of_another_kind(tmp_path: Path, text: str, message: str) -> None:
    [problem] = problems_of(tmp_path / "t.yaml", text)
    assert message in problem


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="there is no such file"):
        read_tenants(tmp_path / "none.yaml")
