"""The form of a recording: whole after a round trip, and clear about what it cannot read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.step import StepCost, Table
from core.policy.context import ClassTarget, PolicyContext, PoolFacts, Tier
from core.recording import (
    Recorded,
    RecordedWorker,
    Setting,
    request_fields,
    request_of,
    setting_fields,
    setting_of,
)
from core.types import Role

COST = StepCost(Table.line(0.01, 1e-4), Table.constant(1e-9), Table.line(0.01, 1e-4), Table.constant(1e-8))
CONTEXT = PolicyContext(
    pools={Role.PREFILL: PoolFacts(COST), Role.DECODE: PoolFacts(None, 64, 2048)},
    targets={"chat": ClassTarget(0.5, 0.05, Tier.PROTECTED, 0.95)},
)
WORKERS = (RecordedWorker("decode-0", Role.DECODE, 4096, 32, 2), RecordedWorker("prefill-0", Role.PREFILL, 4096, 32, 1))

_ms = st.integers(0, 10**7).map(lambda us: us / 1e6)
_names = st.text("abc-0", min_size=1, max_size=8)
_requests = st.builds(
    Recorded,
    st.integers(0, 2 * 10**12).map(lambda ms: ms / 1000),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    _names,
    _names,
    st.none() | st.booleans(),
    st.none() | _ms,
    st.none() | _ms,
    _ms,
    st.none() | _names,
    st.none() | _names,
    st.booleans(),
    st.lists(st.integers(0, 2**48 - 1), max_size=5).map(tuple),
)


def test_a_setting_comes_back_as_it_was() -> None:
    setting = Setting(1e9 + 0.5, "slo-aware", CONTEXT, WORKERS)
    assert setting_of(json.loads(json.dumps(setting_fields(setting)))) == setting


@given(_requests)
def test_a_request_comes_back_as_it_was(request: Recorded) -> None:
    back = request_of(json.loads(json.dumps(request_fields(request))))
    times = ("arrived_s", "ttft_s", "tpot_s", "e2e_s")
    assert back._replace(**dict.fromkeys(times)) == request._replace(**dict.fromkeys(times))
    for name in times:
        assert getattr(back, name) == pytest.approx(getattr(request, name), abs=2e-6)


def test_another_format_and_a_torn_line_are_said_to_be_so() -> None:
    fields = setting_fields(Setting(0.0, "random", CONTEXT, ()))
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        setting_of({**fields, "format": 9})
    with pytest.raises(ValueError, match="does not look like this"):
        setting_of({**fields, "workers": [{"id": 1}]})
    with pytest.raises(ValueError, match="does not look like this"):
        request_of({"timestamp": 1})
