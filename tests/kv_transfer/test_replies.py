"""What an answer of the decode side means for the hand-over."""

from __future__ import annotations

import pytest

from core.errors import CorruptFrame, KVExpired, KVTransferError, PeerMismatch, TransferAborted
from kv_transfer.frames import Kind, Problem, control_frame, problem_frame
from kv_transfer.replies import Verdict, checked


def test_answer_of_a_wanted_kind_is_returned() -> None:
    assert checked(control_frame(Kind.ACK, count=7), Kind.ACK, Kind.LANDED).num_blocks == 7


@pytest.mark.parametrize(
    ("kind", "error", "raised", "declines"),
    [
        (Kind.REFUSED, TransferAborted, TransferAborted, True),  # its request ended, or has the prompt cached
        (Kind.REFUSED, PeerMismatch, PeerMismatch, False),
        (Kind.REFUSED, KVExpired, TransferAborted, False),
        (Kind.FAILED, TransferAborted, TransferAborted, False),
    ],
)
def test_refusals_and_failures_are_final(
    kind: Kind, error: type[KVTransferError], raised: type[KVTransferError], declines: bool
) -> None:
    with pytest.raises(Verdict, match="why") as verdict:
        checked(problem_frame(kind, Problem(error.name, "why")), Kind.GRANT)
    assert type(verdict.value.error) is raised
    assert verdict.value.declines is declines


def test_answer_out_of_turn_is_corrupt() -> None:
    with pytest.raises(CorruptFrame, match="out of turn"):
        checked(control_frame(Kind.LANDED), Kind.GRANT)
