"""Workers become what is wanted, and service goes on meanwhile.

Invariants, for any goal and any state that can come of one:
- it converges: with workers that start, nothing is left to do after a bounded number of steps, and what is there is
  what is wanted;
- a plan has at most one action for a worker, and does not depend on the order of the members;
- a ready worker is never taken away while no other is ready; a pair is not broken up unless it must be;
- a pool that shrinks keeps its least number of ready workers;
- the same goal asked again does nothing.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from core.control.reconcile import (
    Action,
    Drain,
    Goal,
    MemberState,
    Phase,
    Plan,
    PoolGoal,
    Replace,
    Restart,
    Start,
    Stop,
    reconcile,
)
from core.types import Role

STEPS = 200
NEW, OLD = "new", "old"


def member(worker_id: str, phase: Phase = Phase.READY, *, revision: str = NEW, **changes: object) -> MemberState:
    made = MemberState(worker_id, Role(worker_id.partition("-")[0]), phase, revision, pairing=revision)
    return replace(made, **changes)  # type: ignore[arg-type]


def goal(prefill: int = 1, decode: int = 1, *, room: int = 0, least: int = 1) -> Goal:
    return Goal(
        PoolGoal(prefill, NEW, min(least, prefill), room),
        PoolGoal(decode, NEW, min(least, decode), room),
    )


def apply(wanted: Goal, members: dict[str, MemberState], action: Action) -> None:
    """Do at once what the controller does in time: workers that start are starting, those that drain are draining."""
    match action:
        case Start(worker_id, role):
            assert worker_id not in members
            members[worker_id] = MemberState(worker_id, role, Phase.STARTING, wanted.of(role).revision)
        case Restart(worker_id):
            found = members[worker_id]
            assert found.phase in (Phase.ENDED, Phase.SET_ASIDE)
            members[worker_id] = replace(found, phase=Phase.STARTING, revision=wanted.of(found.role).revision)
        case Stop(worker_id):
            assert members[worker_id].phase is not Phase.READY
            del members[worker_id]
        case Drain(worker_id):
            members[worker_id] = replace(members[worker_id], phase=Phase.DRAINING, leaves=True)
        case Replace(worker_id):
            members[worker_id] = replace(members[worker_id], phase=Phase.DRAINING)


def settle(members: dict[str, MemberState], worker_id: str) -> None:
    """Complete what one worker is about."""
    found = members[worker_id]
    if found.phase in (Phase.PLACING, Phase.STARTING):
        members[worker_id] = replace(found, phase=Phase.READY, pairing=found.revision)
    elif found.phase is Phase.FLIPPING:
        members[worker_id] = replace(found, phase=Phase.READY)
    elif found.phase is Phase.DRAINING and found.leaves:
        del members[worker_id]
    elif found.phase is Phase.DRAINING:
        members[worker_id] = replace(found, phase=Phase.ENDED)


def ready(members: dict[str, MemberState], role: Role | None = None) -> list[MemberState]:
    return [m for m in members.values() if m.phase is Phase.READY and (role is None or m.role is role)]


def has_pair(members: dict[str, MemberState]) -> bool:
    decode = {m.pairing for m in ready(members, Role.DECODE)}
    return any(m.pairing in decode for m in ready(members, Role.PREFILL))


_phases = st.sampled_from([Phase.READY, Phase.READY, Phase.READY, *Phase])


@st.composite
def states(draw: st.DrawFn) -> dict[str, MemberState]:
    made = {}
    for role in Role:
        for number in draw(st.lists(st.integers(0, 7), max_size=6, unique=True)):
            phase = draw(_phases)
            found = member(f"{role}-{number}", phase, revision=draw(st.sampled_from([OLD, NEW])))
            if draw(st.integers(0, 5)) == 0:  # it was flipped
                found = replace(found, role=draw(st.sampled_from(Role)))
            leaves = phase is Phase.DRAINING and draw(st.booleans())
            made[found.worker_id] = replace(found, leaves=leaves)
    return made


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    least = draw(st.integers(0, 3))
    return goal(draw(st.integers(0, 5)), draw(st.integers(1, 5)), room=draw(st.integers(0, 1)), least=least)


@given(members=states(), wanted=goals(), data=st.data())
@settings(deadline=None)
def test_it_converges_and_service_goes_on(members: dict[str, MemberState], wanted: Goal, data: st.DataObject) -> None:
    for _ in range(STEPS):
        plan = reconcile(wanted, members.values(), 0.0)
        shuffled = data.draw(st.permutations(list(members.values())), label="order")
        assert reconcile(wanted, shuffled, 0.0) == plan
        ids = [action.worker_id for action in plan.actions]
        assert len(ids) == len(set(ids))
        before = dict(members)
        for action in plan.actions:
            apply(wanted, members, action)
        check_service(wanted, before, members, plan)
        moving = sorted(m.worker_id for m in members.values() if m.phase in MOVING)
        if not moving and not plan.actions:
            break
        if moving:
            settle(members, data.draw(st.sampled_from(moving), label="settles"))
    else:
        raise AssertionError(f"it does not converge: {members}")
    if "only worker" in plan.waits or "one worker and no room" in plan.waits:
        return
    assert plan.waits == ""
    for role in Role:
        found = [m for m in members.values() if m.role is role]
        assert len(found) == wanted.of(role).count
        assert all(m.phase is Phase.READY and m.revision == NEW for m in found)


MOVING = frozenset({Phase.PLACING, Phase.STARTING, Phase.FLIPPING, Phase.DRAINING})


def check_service(wanted: Goal, before: dict[str, MemberState], after: dict[str, MemberState], plan: Plan) -> None:
    """Compare what served before a plan and what serves once all of it was begun."""
    if ready(before):
        assert ready(after)
    replaced = [a for a in plan.actions if isinstance(a, Replace)]
    assert len(replaced) <= 2
    drained = [before[a.worker_id].role for a in plan.actions if isinstance(a, Drain)]
    for role in drained:
        assert len(ready(after, role)) >= wanted.of(role).least
    wants_pairs = wanted.prefill.count > 0 and wanted.decode.count > 0
    if wants_pairs and has_pair(before) and "no pair serves while" not in plan.waits:
        assert has_pair(after)


@given(wanted=goals(), members=states())
def test_what_is_wanted_already_is_left_alone(wanted: Goal, members: dict[str, MemberState]) -> None:
    done = {f"{role}-{number}": member(f"{role}-{number}") for role in Role for number in range(wanted.of(role).count)}
    assert reconcile(wanted, done.values(), 0.0) == Plan()


@given(members=states(), wanted=goals())
def test_nothing_down_is_started_before_its_time(members: dict[str, MemberState], wanted: Goal) -> None:
    later = [replace(m, retry_at_s=10.0) for m in members.values()]
    assert not [a for a in reconcile(wanted, later, 9.0).actions if isinstance(a, Restart)]


def test_a_new_cluster_starts_all_workers() -> None:
    expected = (Start("prefill-0", Role.PREFILL), Start("decode-0", Role.DECODE), Start("decode-1", Role.DECODE))
    assert reconcile(goal(1, 2), [], 0.0) == Plan(expected)


def test_a_worker_that_ended_is_started_again() -> None:
    members = [member("prefill-0"), member("decode-0", Phase.ENDED, retry_at_s=5.0)]
    assert reconcile(goal(), members, 4.0) == Plan()
    assert reconcile(goal(), members, 5.0) == Plan((Restart("decode-0"),))


def test_a_pool_that_shrinks_loses_first_what_does_not_serve() -> None:
    members = [member("prefill-0"), member("decode-0"), member("decode-1", Phase.SET_ASIDE), member("decode-2")]
    assert reconcile(goal(1, 2), members, 0.0) == Plan((Stop("decode-1"),))
    assert reconcile(goal(1, 1), members, 0.0) == Plan((Stop("decode-1"), Drain("decode-2")))


def test_a_pool_does_not_shrink_below_its_least() -> None:
    wanted = Goal(PoolGoal(1, NEW), PoolGoal(1, NEW, least=2))
    members = [member("prefill-0"), member("decode-0"), member("decode-1"), member("decode-2")]
    plan = reconcile(wanted, members, 0.0)
    assert plan == Plan((Drain("decode-2"),), "the decode pool is to be smaller by 1, which must wait")


def test_a_worker_that_is_to_leave_is_drained_and_not_replaced() -> None:
    members = [member("prefill-0"), member("decode-0"), member("decode-1")]
    wanted = replace(goal(1, 1), leaving=frozenset({"decode-0"}))
    assert reconcile(wanted, members, 0.0) == Plan((Drain("decode-0"),))


def test_the_last_worker_is_not_drained() -> None:
    wanted = replace(goal(0, 1, least=0), renewing=frozenset({"decode-0"}))
    plan = reconcile(wanted, [member("decode-0")], 0.0)
    assert plan.actions == ()
    assert "only worker that serves" in plan.waits


def test_an_upgrade_with_room_starts_a_new_pair_first() -> None:
    members = {m.worker_id: m for m in (member("prefill-0", revision=OLD), member("decode-0", revision=OLD))}
    wanted = goal(room=1)
    plan = reconcile(wanted, members.values(), 0.0)
    assert plan == Plan((Start("prefill-1", Role.PREFILL), Start("decode-1", Role.DECODE)))
    for action in plan.actions:
        apply(wanted, members, action)
    assert reconcile(wanted, members.values(), 0.0) == Plan()
    settle(members, "prefill-1")
    assert reconcile(wanted, members.values(), 0.0).actions == ()  # its only decode worker cannot read its KV
    settle(members, "decode-1")
    assert reconcile(wanted, members.values(), 0.0).actions == (Drain("prefill-0"), Drain("decode-0"))


def test_an_upgrade_without_room_goes_pair_by_pair() -> None:
    members = [member(f"{role}-{i}", revision=OLD) for role in Role for i in range(2)]
    assert reconcile(goal(2, 2), members, 0.0) == Plan((Replace("prefill-0"), Replace("decode-0")))


def test_an_upgrade_of_one_pair_without_room_says_that_no_pair_serves_meanwhile() -> None:
    members = [member("prefill-0", revision=OLD), member("decode-0", revision=OLD)]
    plan = reconcile(goal(), members, 0.0)
    assert plan.actions == (Replace("prefill-0"),)
    assert "no pair serves while prefill-0 is replaced" in plan.waits


def test_an_upgrade_whose_first_worker_fails_halts() -> None:
    members = [member(f"{role}-{i}", revision=OLD) for role in Role for i in range(2)]
    members[0] = member("prefill-0", Phase.ENDED, retry_at_s=60.0)
    plan = reconcile(goal(2, 2), members, 0.0)
    assert plan == Plan((), "the upgrade halts: prefill-0 does not start with the new settings")


def test_a_flipped_worker_keeps_the_settings_it_was_started_with() -> None:
    wanted = Goal(PoolGoal(1, "p"), PoolGoal(2, "d"))
    members = [
        member("prefill-0", revision="p", pairing="x"),
        member("prefill-1", revision="p", pairing="x", role=Role.DECODE),
        member("decode-0", revision="d", pairing="x"),
    ]
    assert reconcile(wanted, members, 0.0) == Plan()
