"""The promise of one request: class, own targets, priority, and who may ask for what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Forbidden, InvalidRequest
from core.router_spec import SLOTarget
from router.slo_headers import RequestSLO, SLOHeaders, priority_in
from router.tenants import ANYBODY, Tenant

CHAT, BATCH = SLOTarget("chat", ttft_s=0.5, tpot_s=0.05), SLOTarget("batch", ttft_s=10.0, tpot_s=1.0)
READER = SLOHeaders((CHAT, BATCH), "chat")
NAMED = Tenant("a")
TTFT, TPOT = b"x-slo-ttft-ms", b"x-slo-tpot-ms"


def read(tenant: Tenant = ANYBODY, **headers: bytes) -> RequestSLO:
    return READER.read({name.replace("_", "-").encode(): value for name, value in headers.items()}, tenant)


def test_without_headers_the_default_class_holds() -> None:
    assert read() == RequestSLO("chat")
    assert read(NAMED, host=b"x") == RequestSLO("chat")
    assert READER.target(read()) is CHAT


def test_a_class_is_named_by_its_header() -> None:
    assert read(x_slo_class=b"batch") == RequestSLO("batch")


def test_a_tenant_without_the_default_class_has_its_first_one() -> None:
    assert read(Tenant("a", classes=("batch",))) == RequestSLO("batch")
    assert read(Tenant("a", classes=("batch", "chat"))) == RequestSLO("chat")


def test_an_unknown_class_and_one_of_others_differ() -> None:
    with pytest.raises(InvalidRequest, match=r"no SLO class 'none'; valid are batch, chat"):
        read(x_slo_class=b"none")
    with pytest.raises(InvalidRequest, match=r"valid are batch$"):
        read(Tenant("a", classes=("batch",)), x_slo_class=b"none")
    with pytest.raises(Forbidden):
        read(Tenant("a", classes=("batch",)), x_slo_class=b"chat")


def test_own_targets_replace_those_of_the_class() -> None:
    slo = read(x_slo_class=b"batch", x_slo_ttft_ms=b"700", x_slo_tpot_ms=b"50.5")
    assert slo == RequestSLO("batch", 0.7, 0.0505)
    assert READER.target(slo) == SLOTarget("batch", 0.7, 0.0505)
    assert READER.target(read(x_slo_tpot_ms=b"7")) == SLOTarget("chat", 0.5, 0.007)


def test_other_names_are_read_where_ours_are_missing() -> None:
    assert read(x_llm_d_slo_ttft_ms=b"900", x_llm_d_slo_tpot_ms=b"90") == RequestSLO("chat", 0.9, 0.09)
    assert read(x_llm_d_slo_ttft_ms=b"900", x_slo_ttft_ms=b"800") == RequestSLO("chat", 0.8)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"-1",
        b"nan",
        b"inf",
        b"1e3",
        b"1_000",
        b" 5",
        b"5 ",
        b"0x10",
        b"5ms",
        b"3600000.1",
        b"\xff",
        b"9" * 400,
    ],
)
@pytest.mark.parametrize("header", [TTFT, b"x-llm-d-slo-ttft-ms"])
def test_a_wrong_value_names_header_and_range(header: bytes, value: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        READER.read({header: value}, ANYBODY)
    assert str(refused.value) == f"{header.decode()} must be a number of milliseconds from 1 to 3600000"
    assert refused.value.param == header.decode()


def test_a_tenant_goes_no_lower_than_the_tightest_of_its_classes() -> None:
    assert read(NAMED, x_slo_class=b"batch", x_slo_ttft_ms=b"500") == RequestSLO("batch", 0.5)
    with pytest.raises(InvalidRequest, match="from 500 to 3600000: no tenant goes below the tightest of its classes"):
        read(NAMED, x_slo_class=b"batch", x_slo_ttft_ms=b"499")
    with pytest.raises(InvalidRequest, match="x-slo-tpot-ms must be a number of milliseconds from 1000 to 600000"):
        read(Tenant("a", classes=("batch",)), x_slo_tpot_ms=b"999")
    assert read(ANYBODY, x_slo_ttft_ms=b"1") == RequestSLO("chat", 0.001)


@pytest.mark.parametrize("value", [0, 1, -5, (1 << 31) - 1, -(1 << 31)])
def test_a_priority_is_a_whole_number(value: int) -> None:
    assert priority_in(value) == value


def test_no_priority_is_0() -> None:
    assert priority_in(None) == 0


@pytest.mark.parametrize("value", [True, "1", 1.0, 1 << 31, -(1 << 31) - 1, [], {}, float("nan"), 1 << 200])
def test_any_other_priority_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest, match="priority must be a whole number from -2147483648 to 2147483647"):
        priority_in(value)


@given(
    st.dictionaries(
        st.sampled_from([b"x-slo-class", TTFT, TPOT, b"x-llm-d-slo-ttft-ms", b"x-llm-d-slo-tpot-ms"]),
        st.binary(max_size=20) | st.from_regex(rb"[0-9.]{1,14}") | st.sampled_from([b"chat", b"batch"]),
    ),
    st.sampled_from([ANYBODY, NAMED, Tenant("b", classes=("batch",))]),
)
def test_whatever_is_sent_gives_targets_within_rights_or_a_named_error(
    headers: dict[bytes, bytes], tenant: Tenant
) -> None:
    try:
        slo = READER.read(headers, tenant)
    except (InvalidRequest, Forbidden):  # any other error fails the test
        return
    tenant.check_class(slo.slo_class)
    target = READER.target(slo)
    assert 0 < target.ttft_s <= 3600
    assert 0 < target.tpot_s <= 600
    if tenant.name:
        assert target.ttft_s >= (0.5 if tenant.classes is None else 10.0)
