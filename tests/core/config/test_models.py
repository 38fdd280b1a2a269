"""The tree of models: frozen, strict about keys, with defaults that are valid."""

from __future__ import annotations

from typing import Annotated, get_args, get_origin

import pytest
from pydantic import ValidationError

from core.config.models import BatonConfig, PoolConfig, PoolsConfig, RouterConfig, Section, SLOClass, SLOConfig


def sections(model: type[Section] = BatonConfig) -> list[type[Section]]:
    """List the sections that have keys of their own, from the root down."""
    found = [model]
    for field in model.model_fields.values():
        for branch in get_args(field.annotation) or (field.annotation,):
            kind = get_args(branch)[0] if get_origin(branch) is Annotated else branch
            if isinstance(kind, type) and issubclass(kind, Section):
                found += sections(kind)
    return found


@pytest.mark.parametrize("section", sections())
def test_every_key_says_what_it_means(section: type[Section]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    "section", [s for s in sections() if not any(field.is_required() for field in s.model_fields.values())]
)
def test_defaults_lie_in_their_own_ranges(section: type[Section]) -> None:
    assert section.model_validate_json(section().model_dump_json(), strict=True) == section()


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RouterConfig().port = 1  # type: ignore[misc]


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(ValidationError, match="prot"):
        RouterConfig.model_validate({"prot": 1})


def test_the_default_promise_has_one_class() -> None:
    assert SLOConfig().classes == {"interactive": SLOClass(ttft_ms=1000, tpot_ms=100, attainment=0.9)}


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "ü", "a" * 65, "a\n"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        SLOConfig(default=name)


def test_both_pools_have_the_same_defaults() -> None:
    assert BatonConfig().pools == PoolsConfig(prefill=PoolConfig(), decode=PoolConfig())
