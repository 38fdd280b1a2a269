"""Who is announced, under which version, and what people see of each worker."""

from __future__ import annotations

from cluster.members import Member, Members, short_digest
from core.control.reconcile import Phase
from core.types import Fingerprint, Membership, Role, WorkerHello, WorkerRecord

FINGERPRINT = Fingerprint("e", "m", "t", "d", "c", 32, "l", 1, 1, "")


def member(worker_id: str, phase: Phase, *, role: Role | None = None) -> Member:
    role = role or Role(worker_id.partition("-")[0])
    made = Member(worker_id, role, phase, f"/r/{worker_id}.log", epoch=2)
    made.record = WorkerRecord(worker_id, role, 2, "10.0.0.1:7", "n")
    made.hello = WorkerHello(worker_id, role, 2, "m", 4096, "10.0.0.1:8", 100, FINGERPRINT)
    return made


def members_of(*found: Member) -> tuple[Members, list[Membership]]:
    published: list[Membership] = []
    return Members(published.append, {m.worker_id: m for m in found}), published


def test_all_and_only_the_ready_are_announced() -> None:
    table, published = members_of(*(member(f"decode-{i}", phase) for i, phase in enumerate(Phase)))
    table.announce()
    ready = [f"decode-{i}" for i, phase in enumerate(Phase) if phase is Phase.READY]
    assert [w.worker_id for w in published[-1].workers] == ready


def test_a_version_is_new_only_if_the_workers_are_others() -> None:
    one = member("decode-0", Phase.READY)
    table, published = members_of(one)
    table.announce()
    table.announce()
    one.phase = Phase.FLIPPING
    table.announce()
    one.phase, one.record = Phase.READY, WorkerRecord("decode-0", Role.PREFILL, 2, "10.0.0.1:7", "n")
    table.announce()
    assert [(m.version, [w.role for w in m.workers]) for m in published] == [
        (1, [Role.DECODE]),
        (2, []),
        (3, [Role.PREFILL]),
    ]


def test_an_empty_cluster_is_announced_once() -> None:
    table, published = members_of()
    table.announce()
    table.announce()
    assert published == [Membership(1)]


def test_nothing_is_announced_while_members_are_being_found_out() -> None:
    table, published = members_of(member("decode-0", Phase.READY))
    table.is_held = True
    table.announce()
    assert published == []


def test_members_are_shown_by_role_and_number() -> None:
    table, _ = members_of(
        member("decode-10", Phase.READY),
        member("decode-9", Phase.READY),
        member("decode-2", Phase.READY, role=Role.PREFILL),
        member("prefill-0", Phase.READY),
    )
    assert [m.worker_id for m in table] == ["decode-2", "prefill-0", "decode-9", "decode-10"]


def test_of_one_that_is_down_people_see_why_and_when_it_comes_back() -> None:
    down = member("decode-0", Phase.SET_ASIDE)
    down.reason, down.last_log_lines, down.retry_at_s, down.failures_s = "exited with 1", ("a", "b"), 30.0, (1.0, 2.0)
    shown = down.shown(10.0)
    assert (shown.state, shown.reason, shown.last_log_lines) == ("set aside", "exited with 1", ("a", "b"))
    assert (shown.retry_in_s, shown.num_failures) == (20.0, 2)
    assert shown.fingerprint == short_digest(FINGERPRINT)


def test_of_one_that_serves_no_old_reason_is_shown() -> None:
    ready = member("decode-0", Phase.READY)
    ready.reason, ready.last_log_lines = "exited with 1", ("a",)
    shown = ready.shown(0.0)
    assert (shown.reason, shown.last_log_lines, shown.retry_in_s) == ("", (), None)
