"""What has to be done so that the workers there are become those that are wanted.

Owns the decision, as a function of the state alone: asked again after each change, it goes on where it stands, whoever
asked before. The controller carries actions out, each within a bound, and tells of the state that follows. Must not
know Ray or processes.

What is never done, whatever is wanted: a ready worker is not taken away while that leaves none; a pair that can serve
is not broken up for a worker that is replaced or one too many; a pool does not fall below its least number of ready
workers to become smaller; no more than one worker of each role is replaced at a time, and none after one of the same
settings failed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.types import Role


class Phase(enum.StrEnum):
    """Where a worker is in its life."""

    PLACING = "placing"  # waits for its resources
    STARTING = "starting"
    READY = "ready"
    FLIPPING = "flipping"  # changes its role; takes no new work
    DRAINING = "draining"  # takes no new work, and ends when what runs is done
    ENDED = "ended"  # waits to be started again
    SET_ASIDE = "set aside"  # fails again and again: left alone for long


_ARRIVING = frozenset({Phase.PLACING, Phase.STARTING})
_DOWN = frozenset({Phase.ENDED, Phase.SET_ASIDE})
_MOVING = _ARRIVING | {Phase.FLIPPING, Phase.DRAINING}


@dataclass(frozen=True, slots=True)
class MemberState:
    """One worker; it keeps its id over restarts."""

    worker_id: str
    role: Role
    phase: Phase
    revision: str  # of the settings it was started with
    pairing: str = ""  # of its fingerprint: workers of equal ones can be paired; empty until it was ready
    retry_at_s: float = 0.0  # of one that is down
    leaves: bool = False  # it drains and is not to come back


@dataclass(frozen=True, slots=True)
class PoolGoal:
    """What one pool is to be."""

    count: int
    revision: str  # of the settings that workers of this role start with
    least: int = 1  # ready workers that are not drained to make the pool smaller
    room: int = 0  # how many more workers of this role the cluster would hold now


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted."""

    prefill: PoolGoal
    decode: PoolGoal
    leaving: frozenset[str] = frozenset()  # ids that are to drain; the pool's count is without them already
    renewing: frozenset[str] = frozenset()  # ids that are to drain and to be started anew

    def of(self, role: Role) -> PoolGoal:
        """Look one pool up."""
        return self.prefill if role is Role.PREFILL else self.decode

    @property
    def revisions(self) -> frozenset[str]:
        """Settings that are no reason to replace a worker: one that changed its role keeps those it started with."""
        return frozenset({self.prefill.revision, self.decode.revision})


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker that was not there."""

    worker_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class Restart:
    """Start a worker again that is down, under its next epoch."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End a worker that is not ready yet, or forget one that is down; it is gone then."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a worker finish what runs and end; it is gone then."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Drain a worker, or end one that is not ready yet, and start it again with the settings in force."""

    worker_id: str


Action = Start | Restart | Stop | Drain | Replace


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now; `waits` says why something that is wanted is not."""

    actions: tuple[Action, ...] = ()
    waits: str = ""


@dataclass
class _Table:
    """The members, and who of them is spoken for already."""

    goal: Goal
    members: dict[str, MemberState]
    actions: list[Action] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)  # all and only the ids that an action is for

    def act(self, action: Action) -> None:
        self.actions.append(action)
        self.taken.add(action.worker_id)

    def of(self, role: Role, phases: Iterable[Phase] | None = None) -> list[MemberState]:
        """List the members of a role that no action is for, but those that leave."""
        wanted = frozenset(Phase if phases is None else phases)
        return [
            m
            for m in self.members.values()
            if m.role is role and m.phase in wanted and not m.leaves and m.worker_id not in self.taken
        ]

    def ready(self, role: Role) -> list[MemberState]:
        return self.of(role, (Phase.READY,))

    def is_current(self, member: MemberState) -> bool:
        return member.revision in self.goal.revisions

    def may_go(self, gone: Sequence[MemberState]) -> bool:
        """Whether requests are served as well without these ready workers: by a pair, if there is one now."""
        ids = {m.worker_id for m in gone}
        before = [m for role in Role for m in self.ready(role)]
        left = [m for m in before if m.worker_id not in ids]
        wants_pairs = self.goal.prefill.count > 0 and self.goal.decode.count > 0
        return bool(left) and (not wants_pairs or _has_pair(left) or not _has_pair(before))


def reconcile(goal: Goal, members: Iterable[MemberState], now_s: float) -> Plan:
    """Decide what to do now. Equal arguments give equal plans, whatever the order of the members.

    At most one action is for one worker. Once nothing moves and the plan is empty, the workers are what is wanted, or
    `waits` says what stands in the way.
    """
    table = _Table(goal, {m.worker_id: m for m in sorted(members, key=lambda m: m.worker_id)})
    waits = [_obey_drains(table)]
    for role in Role:
        _restart(table, role, now_s)
    waits += [_resize(table, role) for role in Role]
    if not any(m.phase in _MOVING for m in table.members.values()) and not table.actions:
        waits.append(_roll(table))
    return Plan(tuple(table.actions), "; ".join(filter(None, waits)))


def _obey_drains(table: _Table) -> str:
    """Drain what was asked to; one that waits for another to come back is drained later."""
    waits = ""
    for member in list(table.members.values()):
        leaves = member.worker_id in table.goal.leaving
        if not leaves and member.worker_id not in table.goal.renewing:
            continue
        if member.phase is not Phase.READY:
            if leaves and member.phase in _ARRIVING | _DOWN:
                table.act(Stop(member.worker_id))
        elif len([m for role in Role for m in table.ready(role)]) > 1:
            table.act(Drain(member.worker_id) if leaves else Replace(member.worker_id))
        else:
            waits = f"{member.worker_id} is the only worker that serves: it is drained when another is ready"
    return waits


def _restart(table: _Table, role: Role, now_s: float) -> None:
    """Start again what is down, unless the pool has too many anyway."""
    surplus = len(table.of(role)) - table.goal.of(role).count
    for member in reversed(table.of(role, _DOWN)):
        if surplus > 0:
            surplus -= 1
        elif member.retry_at_s <= now_s:
            table.act(Restart(member.worker_id))


def _resize(table: _Table, role: Role) -> str:
    """Start what is missing; take away what is too much, and what serves least first."""
    goal = table.goal.of(role)
    renewed = sum(isinstance(a, Restart | Replace) and table.members[a.worker_id].role is role for a in table.actions)
    surplus = len(table.of(role)) + renewed - goal.count
    for _ in range(-surplus):
        table.act(Start(_free_id(table, role), role))
    outdated = [m for m in table.ready(role) if not table.is_current(m)]
    if outdated and any(m.phase in _ARRIVING and table.is_current(m) for m in table.of(role)):
        surplus -= 1  # it comes in place of an outdated one, which goes when this one is ready
    for member in sorted(table.of(role), key=lambda m: _worth(table, m)):
        if surplus <= 0 or (outdated and member.phase is Phase.READY and table.is_current(member)):
            break
        if member.phase in _ARRIVING | _DOWN:
            table.act(Stop(member.worker_id))
            surplus -= 1
        elif member.phase is Phase.READY and len(table.ready(role)) > goal.least and table.may_go([member]):
            table.act(Drain(member.worker_id))
            surplus -= 1
    return f"the {role} pool is to be smaller by {surplus}, which must wait" if surplus > 0 else ""


def _worth(table: _Table, member: MemberState) -> tuple[bool, bool, bool, str]:
    """Order members by what is lost with them: those that serve, and those of the settings in force, go last."""
    serves = member.phase is Phase.READY
    return (serves, member.phase not in _DOWN, table.is_current(member), _reversed(member.worker_id))


def _reversed(worker_id: str) -> str:
    """Make ids sort backwards: of equal workers the one with the highest number goes."""
    pool, _, number = worker_id.rpartition("-")
    return f"{pool}{10**9 - int(number):010d}" if number.isdecimal() else worker_id


def _roll(table: _Table) -> str:
    """Take one step of replacing workers whose settings are not those in force."""
    outdated = {role: [m for m in table.of(role) if not table.is_current(m)] for role in Role}
    if not any(outdated.values()):
        return ""
    failed = [m.worker_id for m in table.members.values() if m.phase in _DOWN and table.is_current(m)]
    if failed:
        return f"the upgrade halts: {failed[0]} does not start with the new settings"
    roles = [role for role in Role if outdated[role]]
    if all(table.goal.of(role).room > 0 for role in roles):
        for role in roles:
            table.act(Start(_free_id(table, role), role))
        return ""
    for gone in _choices(table, outdated):
        if table.may_go(gone):
            for member in gone:
                table.act(Replace(member.worker_id))
            return ""
    return _roll_apart(table, outdated)


def _choices(table: _Table, outdated: dict[Role, list[MemberState]]) -> Iterable[list[MemberState]]:
    """List what may be replaced in one step, a pair first."""
    first = {role: next((m for m in outdated[role] if m.phase is Phase.READY), None) for role in Role}
    prefill, decode = first[Role.PREFILL], first[Role.DECODE]
    if prefill is not None and decode is not None:
        yield [prefill, decode]
    for role in _by_what_pairs_sooner(table):
        if (member := first[role]) is not None:
            yield [member]


def _roll_apart(table: _Table, outdated: dict[Role, list[MemberState]]) -> str:
    """Replace one worker though no pair is left meanwhile: requests run whole on those that are."""
    ready = [m for role in Role for m in table.ready(role)]
    if len(ready) < 2:
        return "the upgrade halts: there is one worker and no room for a second; use `down` and `up`"
    for role in _by_what_pairs_sooner(table):
        member = next((m for m in outdated[role] if m.phase is Phase.READY), None)
        if member is not None:
            table.act(Replace(member.worker_id))
            return f"no pair serves while {member.worker_id} is replaced: there is no room for a second one"
    return ""


def _by_what_pairs_sooner(table: _Table) -> tuple[Role, Role]:
    """Begin with the role whose counterpart runs with the settings in force already: its new worker makes a pair."""
    has_new_prefill = any(table.is_current(m) for m in table.ready(Role.PREFILL))
    return (Role.DECODE, Role.PREFILL) if has_new_prefill else (Role.PREFILL, Role.DECODE)


def _has_pair(ready: Sequence[MemberState]) -> bool:
    receivers = {m.pairing for m in ready if m.role is Role.DECODE}
    return any(m.pairing in receivers for m in ready if m.role is Role.PREFILL)


def _free_id(table: _Table, role: Role) -> str:
    used = table.members.keys() | table.taken
    number = 0
    while f"{role}-{number}" in used:
        number += 1
    return f"{role}-{number}"
