"""What the hand-overs of a cluster look like from its workers' answers, what is wrong with them, and what to do.

Owns the findings and the tables of `doctor`. Pure: the answers are handed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cluster.cluster_status import MemberStatus
from cluster.console import table
from core.policy.pair_trust import PairReport, Trust
from core.types import Role

LATE_S: Final = 1.0  # beyond its deadline by which a lease that is still open is a fault: expiry runs on a busy thread
_LEDGER = ("granted", "held", "released", "expired")


@dataclass(frozen=True, slots=True)
class RankAnswer:
    """What the KV endpoint of one engine rank said."""

    member: MemberStatus
    address: str  # empty: it has none to ask
    stats: Mapping[str, Any] | None = None  # as KVEndpoint.stats; None: no answer
    problem: str = ""  # why there is no answer


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    subject: str  # worker, or the pair
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}; {self.remedy}"


def findings(answers: Sequence[RankAnswer]) -> list[Finding]:
    """List what is wrong, by worker, then what keeps workers from being paired."""
    found: list[Finding] = []
    names = _names(answers)
    for answer in answers:
        found += _of_member(answer)
        if answer.stats is not None:
            found += [*_of_ledger(answer, answer.stats), *_of_leases(answer, answer.stats)]
            found += [*_of_ways(answer, answer.stats, names), *_of_quarantine(answer, answer.stats)]
    return [*found, *_of_pairs([answer.member for answer in answers])]


def _of_member(answer: RankAnswer) -> Iterator[Finding]:
    member = answer.member
    if member.state != "ready":
        why = f" ({member.reason})" if member.reason else ""
        yield Finding(member.name, f"it is {member.state}{why}", f"its log is {member.log_path}")
    elif answer.problem:
        remedy = f"see whether process {member.pid} hangs; its log is {member.log_path}"
        yield Finding(member.name, f"its KV endpoint {answer.address} does not answer: {answer.problem}", remedy)


def _of_ledger(answer: RankAnswer, stats: Mapping[str, Any]) -> Iterator[Finding]:
    for unit in ("blocks", "bytes"):
        account = stats[unit]
        missing = account["granted"] - account["held"] - account["released"] - account["expired"]
        if missing:
            terms = " - ".join(f"{name} {account[name]}" for name in _LEDGER)
            what = f"its ledger does not balance: {terms} = {missing} {unit}"
            yield Finding(answer.member.name, what, "that is a fault of Baton: report it, and restart the worker")


def _of_leases(answer: RankAnswer, stats: Mapping[str, Any]) -> Iterator[Finding]:
    for lease in stats["leases"]:
        left_s = _left_s(lease)
        if left_s < -LATE_S:
            what = (
                f"the {lease['side']} lease {lease['transfer_id']} of {lease['owner']} holds {lease['num_blocks']} "
                f"blocks {-left_s:.1f} s beyond its deadline"
            )
            remedy = "if it is there again a minute from now the KV thread hangs: restart the worker"
            yield Finding(answer.member.name, what, remedy)


def _of_ways(answer: RankAnswer, stats: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Finding]:
    """Report transports set aside, to peers that still are members: what a dead one left behind is no fault."""
    for peer, known in stats.get("peers", {}).items():
        if peer not in names:
            continue
        ways = known["transports"]
        resting = [way for way in ways if way["rests_s"] > 0]
        pair = f"{answer.member.name} -> {names[peer]}"
        for way in resting:
            what = f"{way['name']} failed {way['failures']} times in a row and rests {way['rests_s']:.0f} s more"
            yield Finding(pair, what, f"the log {answer.member.log_path} says why")
        if ways and len(resting) == len(ways):
            remedy = "see whether the two machines reach each other"
            yield Finding(pair, "no transport works, so decode computes these prompts itself", remedy)


def _of_quarantine(answer: RankAnswer, stats: Mapping[str, Any]) -> Iterator[Finding]:
    for sender in stats.get("quarantined", ()):
        what = f"decode takes no KV of it for {sender['left_s']:.0f} s more: {sender['reason']}"
        remedy = (
            f"{answer.member.name} computes these prompts itself; check memory and drivers of both machines, and the "
            f"log {answer.member.log_path}"
        )
        yield Finding(f"{sender['worker_id']} -> {answer.member.name}", what, remedy)


def _of_pairs(members: Sequence[MemberStatus]) -> Iterator[Finding]:
    """Report prefill and decode workers that differ, once for each two kinds of them."""
    kinds: dict[tuple[str, str], list[tuple[MemberStatus, MemberStatus]]] = {}
    for prefill in _of_role(members, Role.PREFILL):
        for decode in _of_role(members, Role.DECODE):
            if prefill.identity != decode.identity:
                kinds.setdefault((prefill.fingerprint, decode.fingerprint), []).append((prefill, decode))
    for pairs in kinds.values():
        one, other = pairs[0][0].identity, pairs[0][1].identity
        assert one is not None
        assert other is not None
        fields = one.differences(other)
        values = ", ".join(f"{field} ({getattr(one, field)} and {getattr(other, field)})" for field in fields)
        prefills, decodes = (sorted({pair[side].name for pair in pairs}) for side in (0, 1))
        subject = f"{', '.join(prefills)} and {', '.join(decodes)}"
        yield Finding(subject, f"they are never paired, for they differ in {values}", "start both with the same")


def of_self_tests(pairs: Sequence[PairReport]) -> list[Finding]:
    """Report pairs that a router does not use because their self-test failed; quarantine the decode worker tells."""
    return [
        Finding(
            f"{pair.prefill} -> {pair.decode}",
            f"they are not paired: {pair.reason}",
            f"it is tested again in {pair.retry_in_s:.0f} s; until then {pair.decode} computes these prompts itself",
        )
        for pair in pairs
        if pair.trust is Trust.FAILED
    ]


def _of_role(members: Sequence[MemberStatus], role: Role) -> list[MemberStatus]:
    by_name = {member.name: member for member in members if member.role is role and member.identity is not None}
    return list(by_name.values())


def page(answers: Sequence[RankAnswer], found: Sequence[Finding]) -> list[str]:
    """Write ledgers, open leases, transports and findings as lines."""
    names = _names(answers)
    lines = _section(("WORKER", "KV ADDRESS", "UNIT", *map(str.upper, _LEDGER), "IMBALANCE"), _ledger_rows(answers))
    lease_head = ("WORKER", "SIDE", "LEASE", "OWNER", "PEER", "BLOCKS", "AGE", "DEADLINE")
    lines += _section(lease_head, _lease_rows(answers, names), title="open leases")
    way_head = ("WORKER", "PEER", "TRANSPORT", "USED", "LARGE", "SMALL", "FAILURES", "RESTS")
    lines += _section(way_head, _way_rows(answers, names), title="transports")
    lines += ["wrong:", *(f"  {finding}" for finding in found)] if found else ["all is well"]
    return lines


def _section(head: Sequence[str], rows: list[tuple[str, ...]], *, title: str = "") -> list[str]:
    if not rows:
        return [f"{title}: none", ""]
    return [*([f"{title}:"] if title else []), *table([head, *rows]), ""]


def _ledger_rows(answers: Sequence[RankAnswer]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for answer in answers:
        if answer.stats is None:
            rows.append((answer.member.name, answer.address or "-", "-", *("-" for _ in _LEDGER), "-"))
            continue
        for unit in ("blocks", "bytes"):
            account = answer.stats[unit]
            counts = [account[name] for name in _LEDGER]
            missing = counts[0] - sum(counts[1:])
            rows.append((answer.member.name, answer.address, unit, *map(str, (*counts, missing))))
    return rows


def _lease_rows(answers: Sequence[RankAnswer], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for answer in answers:
        for lease in (answer.stats or {}).get("leases", ()):
            peer = lease.get("peer") or "-"
            left_s = _left_s(lease)
            deadline = f"in {left_s:.1f} s" if left_s >= 0 else f"{-left_s:.1f} s ago"
            who = (lease["side"], lease["transfer_id"], lease["owner"], names.get(peer, peer))
            rows.append((answer.member.name, *who, str(lease["num_blocks"]), f"{lease['age_s']:.1f} s", deadline))
    return rows


def _way_rows(answers: Sequence[RankAnswer], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for answer in answers:
        for peer, known in (answer.stats or {}).get("peers", {}).items():
            for way in known["transports"]:
                large, small_s = way["large_bytes_per_s"], way["small_s"]
                speeds = ("-" if large is None else f"{large / 1e9:.2f} GB/s", _ms(small_s))
                used = "yes" if way["is_favourite"] else ""
                rest = f"{way['rests_s']:.0f} s" if way["rests_s"] > 0 else "-"
                failures = str(way["failures"])
                rows.append((answer.member.name, names.get(peer, peer), way["name"], used, *speeds, failures, rest))
    return rows


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _left_s(lease: Mapping[str, Any]) -> float:
    """Reckon how long a lease still has; its times are of the worker's own clock, its age is not."""
    return float(lease["deadline_s"] - lease["granted_s"] - lease["age_s"])


def _names(answers: Sequence[RankAnswer]) -> dict[str, str]:
    """Name the members that live, by each of their KV addresses."""
    return {answer.address: answer.member.name for answer in answers if answer.address}
