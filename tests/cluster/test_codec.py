"""What is encoded is decoded to an equal value; what cannot be decoded says so with a core error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import codec
from cluster.pb import worker_pb2 as pb
from core.engine import HttpCall, Resume
from core.errors import BatonError, WorkerError, error_classes
from core.types import Fingerprint, Handover, Leg, LegOrder, Membership, Role, WorkerHello, WorkerRecord, WorkerState

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
seconds = st.floats(allow_nan=False)
headers = st.lists(st.tuples(text, text), max_size=4).map(tuple)
resumes = st.none() | st.builds(
    Resume, st.lists(u32, max_size=6).map(tuple), st.lists(u32, max_size=6).map(tuple), st.integers(0, 2**40)
)
calls = st.builds(HttpCall, text, text, text, headers, st.binary(max_size=50), text, resumes)
handovers = st.none() | st.builds(Handover, text, text, seconds)
submissions = st.builds(codec.Submission, u64, st.sampled_from(Leg), calls, handovers, seconds, u32)
fingerprints = st.builds(Fingerprint, text, text, text, text, text, u32, text, u32, u32, text)
hellos = st.builds(WorkerHello, text, st.sampled_from(Role), u64, text, u32, text, u32, fingerprints)
states = st.builds(WorkerState, u32, u32, u32, u32, seconds, st.booleans())
records = st.builds(WorkerRecord, text, st.sampled_from(Role), u64, text, text)
memberships = st.builds(Membership, u64, st.lists(records, max_size=4).map(tuple))


@given(submissions)
def test_submission_survives_the_wire(value: codec.Submission) -> None:
    order = codec.SubmitEncoder(value.call, value.handover, prompt_tokens=value.prompt_tokens, slack_s=value.slack_s)
    order.encode(value.call_id ^ 1, Leg.WHOLE)  # what was encoded before leaves nothing behind
    wire = order.encode(value.call_id, value.leg)
    decoded = codec.submission_from_pb(pb.Command.FromString(wire).submit)
    assert decoded == value
    assert decoded.order == LegOrder(value.slack_s, value.prompt_tokens)


@given(st.lists(u32))
def test_token_ids_survive_the_wire(token_ids: list[int]) -> None:
    wire = codec.tokens_to_pb(token_ids)
    assert wire == b"".join(token.to_bytes(codec.TOKEN_BYTES, "little") for token in token_ids)
    assert codec.tokens_from_pb(wire).tolist() == token_ids


def test_half_a_token_is_a_worker_error() -> None:
    with pytest.raises(WorkerError, match="5 bytes"):
        codec.tokens_from_pb(bytes(5))


@pytest.mark.parametrize("given", [(), (("traceparent", "of the request"),)])
def test_each_leg_carries_its_own_place_in_the_trace(given: tuple[tuple[str, str], ...]) -> None:
    traceparents = {Leg.PREFILL: "of prefill", Leg.DECODE: "of decode"}
    call = HttpCall("r", "POST", "/", (("accept", "x"), *given), b"")
    order = codec.SubmitEncoder(call, None, traceparents=traceparents)
    for leg in (Leg.DECODE, Leg.PREFILL):
        decoded = codec.submission_from_pb(pb.Command.FromString(order.encode(1, leg)).submit)
        assert decoded.call.headers == (("accept", "x"), ("traceparent", traceparents[leg]))


@given(hellos)
def test_hello_survives_the_wire(value: WorkerHello) -> None:
    assert codec.hello_from_pb(pb.Hello.FromString(codec.hello_to_pb(value).SerializeToString())) == value


@given(states)
def test_state_survives_the_wire(value: WorkerState) -> None:
    assert codec.state_from_pb(pb.WorkerState.FromString(codec.state_to_pb(value).SerializeToString())) == value


@given(memberships)
def test_membership_survives_the_wire(value: Membership) -> None:
    wire = codec.membership_to_pb(value).SerializeToString()
    assert codec.membership_from_pb(pb.Membership.FromString(wire)) == value


@given(st.integers(3, 2**31 - 1))
def test_leg_of_another_version_is_a_worker_error(number: int) -> None:
    with pytest.raises(WorkerError, match=f"leg {number} is unknown"):
        codec.submission_from_pb(pb.Submit(leg=number))  # type: ignore[arg-type]


@given(text.filter(lambda name: name not in set(Role)))
def test_role_of_another_version_is_a_worker_error(name: str) -> None:
    with pytest.raises(WorkerError, match="is unknown"):
        codec.hello_from_pb(pb.Hello(role=name))
    with pytest.raises(WorkerError, match="is unknown"):
        codec.membership_from_pb(pb.Membership(workers=[pb.WorkerRecord(role=name)]))


def test_state_has_no_field_the_wire_lacks() -> None:
    assert [f.name for f in pb.WorkerState.DESCRIPTOR.fields] == list(WorkerState.__dataclass_fields__)
    assert [f.name for f in pb.Fingerprint.DESCRIPTOR.fields] == list(Fingerprint.__dataclass_fields__)
    assert [f.name for f in pb.Hello.DESCRIPTOR.fields] == list(WorkerHello.__dataclass_fields__)


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.name)
def test_every_error_keeps_its_class_and_message(kind: type[BatonError]) -> None:
    error = codec.error_from_name(kind.name, "why")
    assert (type(error), str(error)) == (kind, "why")


def test_unknown_error_is_a_worker_error_that_names_it() -> None:
    error = codec.error_from_name("from_the_future", "why")
    assert (type(error), str(error)) == (WorkerError, "from_the_future: why")
