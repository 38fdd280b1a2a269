"""A router's event log driven through the policy again: the same events must give the same decisions.

Owns the reading of a log and the comparison. Must not know how a router acts on a decision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from core.cluster_state import ClusterState
from core.errors import ConfigError
from core.events import Decided, Event, LogOpened, Skipped, event_of
from core.policy.protocol import Policy
from core.policy.registry import policy_named
from core.types import Decision

MAX_DIFFERING: Final = 100  # kept; the rest is only counted


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision that the policy does not take again."""

    line: int
    request_id: str
    logged: Decision
    replayed: Decision


@dataclass(frozen=True, slots=True)
class Replay:
    """What a log and the policy make of each other."""

    decisions: int  # replayed
    num_differing: int
    differing: tuple[Difference, ...]  # the first MAX_DIFFERING
    skipped: int  # left out by the router, which said so
    missing: int  # not in the log, and nothing says why

    @property
    def agrees(self) -> bool:
        """Every decision that the router did not leave out is there and was taken again."""
        return not self.num_differing and not self.missing


@dataclass(slots=True)
class _Progress:
    """A log read so far."""

    policy: Policy | None  # of the log, until it names one
    state: ClusterState = field(default_factory=ClusterState)
    next_sequence: int | None = None  # None: any, as at the start of a file
    decisions: int = 0
    num_differing: int = 0
    differing: list[Difference] = field(default_factory=list)
    skipped: int = 0
    missing: int = 0


def replay(log: Path, policy: Policy | None = None) -> Replay:
    """Take every decision of a log again, by the policy that the log names or by another one.

    A last line without its end, as a killed router leaves it, is not read. Raises ConfigError for a file that cannot be
    read or is no event log, naming the line.
    """
    progress = _Progress(policy)
    for number, event in _events(log):
        try:
            _take(progress, number, event, is_policy_given=policy is not None)
        except ValueError as exc:
            raise ConfigError(f"{log}:{number}: {exc}; replay a whole log, as the router wrote it") from exc
    return Replay(
        decisions=progress.decisions,
        num_differing=progress.num_differing,
        differing=tuple(progress.differing),
        skipped=progress.skipped,
        missing=progress.missing,
    )


def _events(log: Path) -> Iterator[tuple[int, Event]]:
    try:
        with log.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                yield number, _event(log, number, line)
    except OSError as exc:
        raise ConfigError(f"{log}: the event log cannot be read ({exc.strerror}); name an existing file") from exc


def _event(log: Path, number: int, line: bytes) -> Event:
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        return event_of(fields)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{log}:{number}: {exc}; this is no line of an event log") from exc


def _take(progress: _Progress, number: int, event: Event, *, is_policy_given: bool) -> None:
    progress.state.apply(event)
    if isinstance(event, LogOpened):
        progress.next_sequence = None
        if not is_policy_given:
            progress.policy = policy_named(event.policy, event.context)
    elif isinstance(event, Skipped):
        progress.skipped += event.decisions
        if progress.next_sequence is not None:
            progress.next_sequence += event.decisions
    elif isinstance(event, Decided):
        _decide_again(progress, number, event)


def _decide_again(progress: _Progress, number: int, event: Decided) -> None:
    if progress.policy is None:
        raise ValueError("a decision before the line that names the policy")
    sequence = event.request.sequence
    if progress.next_sequence is not None and sequence != progress.next_sequence:
        progress.missing += max(1, sequence - progress.next_sequence)
    progress.next_sequence = sequence + 1
    progress.decisions += 1
    replayed = progress.policy.decide(event.request, progress.state.view().without(event.excluded), event.at_s)
    if replayed == event.decision:
        return
    progress.num_differing += 1
    if len(progress.differing) < MAX_DIFFERING:
        progress.differing.append(Difference(number, event.request.request_id, event.decision, replayed))
