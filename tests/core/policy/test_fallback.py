from __future__ import annotations

import pytest

from core.policy.fallback import NO_WORKER, Alone, without_pair
from core.policy.protocol import Candidates
from core.types import RequestShape, Role
from tests.support.views import worker

P, D = (worker("p0", Role.PREFILL),), (worker("d0", Role.DECODE),)


def shape(tokens: int = 100, whole_only: str | None = None) -> RequestShape:
    return RequestShape("r", tokens, None, "interactive", whole_only)


@pytest.mark.parametrize(
    ("request_", "workers", "below", "case"),
    [
        (shape(), Candidates((), ()), 0, NO_WORKER),
        (shape(), Candidates(P, ()), 0, Alone(P, "no decode worker")),
        (shape(), Candidates((), D), 0, Alone(D, "no prefill worker")),
        (shape(whole_only="echo"), Candidates(P, D), 0, Alone(D, "echo")),
        (shape(), Candidates(P, D), 0, None),
        (shape(0), Candidates(P, D), 0, None),
        (shape(), Candidates(P, D), 100, Alone(D, "at most 100 prompt tokens")),
        (shape(101), Candidates(P, D), 100, None),
    ],
)
def test_who_serves_without_a_pair(request_: RequestShape, workers: Candidates, below: int, case: object) -> None:
    assert without_pair(request_, workers, below) == case
