"""Where the time of one request went: stages that add up to its TTFT, whatever workers report.

Owns the marks of a request on the router's monotonic clock and their split by what workers measured. Sums are exact by
construction: times are whole microseconds, and each stage takes from what is left of the measured time. What nothing
accounts for is called unattributed. Must not know HTTP, policies or where marks come from.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from core.types import LegFacts

_YEAR_S: Final = 31_536_000
_YEAR_US: Final = _YEAR_S * 1_000_000


class Marks:
    """Moments of one request in seconds of the monotonic clock; None: it has not come to that."""

    __slots__ = (
        "arrived_s",
        "decided_s",
        "ended_s",
        "first_s",
        "held_s",
        "submitted_s",
    )

    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s  # its head was read
        self.decided_s: float | None = None  # the policy was asked for the first time
        self.held_s = 0.0  # no moment: how long it was held back, all holds together
        self.submitted_s: float | None = None  # the latest try went to its workers
        self.first_s: float | None = None  # the first byte of a stream's body was passed on
        self.ended_s: float | None = None  # the last byte was


class Timeline(NamedTuple):  # one is made for every request: a frozen dataclass takes six times as long to make
    """The time from arrival to `until`, in stages that follow one another; whole microseconds.

    `until` is "first byte" of a stream as it was passed on; "first token" as the worker reports it of an answer that
    came as one document; "end" where the first token cannot be told; "now" of a request that runs.
    """

    until: str
    total_us: int
    read_us: int = 0  # head, body, decision and hand to the session
    held_us: int = 0  # by the router, until a worker had room
    retried_us: int = 0  # lost with workers that failed
    queue_us: int = 0  # in the engine that computes the prompt
    prefill_us: int = 0
    transfer_exposed_us: int = 0  # of KV, after prefill had ended
    blocks_us: int = 0  # the decode engine had no blocks, or did not schedule what had landed
    first_step_us: int = 0  # the decode step that made the first token
    unattributed_us: int = 0  # no fact accounts for it: the worker's HTTP layer, the way there and back
    transfer_hidden_us: int | None = None  # of KV while prefill ran: not in the sum; None: not known

    @property
    def ttft_us(self) -> int | None:
        """The time to the first token; None where it cannot be told."""
        return self.total_us if self.until in ("first byte", "first token") else None

    @property
    def stages_us(self) -> tuple[int, ...]:
        """The stages in the order of STAGES; their sum is `total_us`."""
        return self[2:11]


STAGES: Final = (
    "read",
    "held",
    "retried",
    "queue",
    "prefill",
    "transfer_exposed",
    "blocks",
    "first_step",
    "unattributed",
)


def timeline_of(
    marks: Marks,
    prefill: LegFacts | None,
    answering: LegFacts | None,
    *,
    is_pair: bool,
    attempts: int = 1,
    now_s: float | None = None,
    had_blocks: bool = False,
) -> Timeline:
    """Split the time of a request; `answering` are the facts of the leg that made the output.

    `now_s` stands for the end of a request that runs. `had_blocks` says that the decode worker did not lack any when
    the request came to it. Any marks and facts give stages that are not negative.
    """
    if marks.first_s is None:
        until, total_us = _unmeasured(marks, answering, now_s)
    else:
        until, total_us = "first byte", _us(marks.first_s - marks.arrived_s)
    read_us, held_us, retried_us = _before_submission(marks, total_us, attempts)
    left_us = total_us - read_us - held_us - retried_us
    if answering is None and prefill is None:
        return Timeline(until, total_us, read_us, held_us, retried_us, 0, 0, 0, 0, 0, left_us)
    if answering is not None and not (is_pair and answering.received_tokens):
        queue_us = _at_most(left_us, answering.queued_s)
        prefill_us = _at_most(left_us - queue_us, answering.prefill_s)
        rest_us = left_us - queue_us - prefill_us
        return Timeline(until, total_us, read_us, held_us, retried_us, queue_us, prefill_us, 0, 0, 0, rest_us)
    stages, hidden_us = _pair(prefill, answering, left_us, had_blocks=had_blocks)
    return Timeline(until, total_us, read_us, held_us, retried_us, *stages, hidden_us)


def _unmeasured(marks: Marks, answering: LegFacts | None, now_s: float | None) -> tuple[str, int]:
    """Say until when the time line of a request goes that streamed nothing, and how long that is."""
    if marks.ended_s is None:
        return "now", 0 if now_s is None else _us(now_s - marks.arrived_s)
    total_us = _us(marks.ended_s - marks.arrived_s)
    if answering is None or marks.submitted_s is None:
        return "end", total_us
    inside_us = _us(answering.queued_s) + _us(answering.prefill_s)
    return "first token", min(_us(marks.submitted_s - marks.arrived_s) + inside_us, total_us)


def _before_submission(marks: Marks, total_us: int, attempts: int) -> tuple[int, int, int]:
    """Split what passed before the try that answered: read, held, retried."""
    before_us = total_us  # of a request that never went to a worker
    if marks.submitted_s is not None:
        before_us = _at_most(total_us, marks.submitted_s - marks.arrived_s)
    held_us = _at_most(before_us, marks.held_s) if marks.held_s else 0
    if attempts <= 1 or marks.decided_s is None or marks.submitted_s is None:
        return before_us - held_us, held_us, 0
    read_us = _at_most(before_us - held_us, marks.decided_s - marks.arrived_s)
    return read_us, held_us, before_us - held_us - read_us


def _pair(
    prefill: LegFacts | None, decode: LegFacts | None, left_us: int, *, had_blocks: bool
) -> tuple[tuple[int, int, int, int, int, int], int | None]:
    """Split the time from submission on, from queue to unattributed; and say what of the transfer was hidden.

    Both legs are submitted at once, so both engines' times count from there. A worker that does not say when the KV
    landed leaves a gap between prefill and the first step: that is transfer if there were blocks, else nobody can say.
    """
    begun_us = left_us if decode is None else _at_most(left_us, decode.queued_s)  # the decode engine's first step
    queue_us = prefill_us = exposed_us = blocks_us = first_step_us = 0
    hidden_us: int | None = None
    if prefill is not None:
        queue_us = _at_most(begun_us, prefill.queued_s)
        prefill_us = _at_most(begun_us - queue_us, prefill.prefill_s)
        computed_us = queue_us + prefill_us
        if decode is not None and decode.landed_s > 0:
            landed_us, ready_us = _at_most(begun_us, decode.landed_s), _us(decode.blocks_s)
            exposed_us = max(0, landed_us - max(computed_us, ready_us))
            blocks_us = begun_us - computed_us - exposed_us
            hidden_us = max(0, min(computed_us, landed_us) - max(queue_us, ready_us))
        elif decode is not None and had_blocks:
            exposed_us = begun_us - computed_us
    left_us -= queue_us + prefill_us + exposed_us + blocks_us
    if decode is not None:
        first_step_us = _at_most(left_us, decode.prefill_s)
    return (queue_us, prefill_us, exposed_us, blocks_us, first_step_us, left_us - first_step_us), hidden_us


def _at_most(limit_us: int, seconds: float) -> int:
    """Round to whole microseconds within 0 and a limit; what is no number is nothing."""
    if seconds * 1e6 < limit_us:
        return int(seconds * 1e6 + 0.5) if seconds > 0 else 0
    return limit_us if seconds > 0 else 0


def _us(seconds: float) -> int:
    """Round to whole microseconds; what is negative or no number is nothing, what has no bound is a year."""
    if 0 < seconds < _YEAR_S:
        return int(seconds * 1e6 + 0.5)
    return _YEAR_US if seconds >= _YEAR_S else 0
