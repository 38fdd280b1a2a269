from __future__ import annotations

import pytest

from core.policy.context import LinkFacts, PolicyContext
from tests.support.contexts import context


@pytest.mark.parametrize(
    "known",
    [PolicyContext(), context(), context(link=LinkFacts(1e-6, 1 / 3, 1.0), overflow=True, whole_below_tokens=7)],
)
def test_json_round_trip(known: PolicyContext) -> None:
    assert PolicyContext.from_json(known.to_json()) == known


def test_other_json_is_refused() -> None:
    with pytest.raises(ValueError, match="pools"):
        PolicyContext.from_json('{"pools": 3}')
