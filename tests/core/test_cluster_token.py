"""Only who presents the token is admitted, whatever else is presented."""

import pytest

from core.cluster_token import operator_key, token_metadata, token_presented


@pytest.mark.parametrize("presented", [(), (("authorization", "Bearer x"),), (("authorization", "Bearer \u00fc"),)])
def test_others_are_refused(presented: tuple[tuple[str, str], ...]) -> None:
    assert not token_presented(presented, "secret")
    assert not token_presented(None, "secret")


def test_the_token_is_admitted_and_without_one_everybody() -> None:
    assert token_presented(token_metadata("secret"), "secret")
    assert token_presented((), "")


def test_the_operators_key_is_of_one_token_and_does_not_hold_it() -> None:
    assert operator_key("secret") == operator_key("secret") != operator_key("secret2")
    assert "secret" not in operator_key("secret")
    assert operator_key("") == ""
