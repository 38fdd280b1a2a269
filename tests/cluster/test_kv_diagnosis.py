"""What doctor finds, by example: each fault with its remedy, and nothing where all is well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.cluster_status import MemberStatus
from cluster.kv_diagnosis import Finding, RankAnswer, findings, of_self_tests, page
from core.policy.pair_trust import PairReport, Trust
from core.types import Fingerprint, Role

SAME = Fingerprint("vllm 1", "m", "t", "bf16", "auto", 16, "cpu", 1, 1, "")
PREFILL = MemberStatus(
    "prefill-0",
    Role.PREFILL,
    "n",
    "ready",
    pid=11,
    kv_address="a:1",
    fingerprint="f0",
    identity=SAME,
    log_path="/p",
)
DECODE = MemberStatus(
    "decode-0", Role.DECODE, "n", "ready", pid=12, kv_address="a:2", fingerprint="f0", identity=SAME, log_path="/d"
)


def account(granted: int, held: int = 0, released: int = 0, expired: int = 0) -> dict[str, int]:
    return {"granted": granted, "held": held, "released": released, "expired": expired}


def stats(**changes: Any) -> dict[str, Any]:
    return {"blocks": account(7, 2, 4, 1), "bytes": account(70, 20, 40, 10), "leases": [], "peers": {}} | changes


def lease(*, age_s: float, lease_s: float = 30.0) -> dict[str, Any]:
    return {
        "transfer_id": "t1",
        "side": "send",
        "owner": "req-1",
        "num_blocks": 2,
        "granted_s": 1000.0,  # of the worker's own clock
        "deadline_s": 1000.0 + lease_s,
        "age_s": age_s,
        "peer": "a:2",
    }


def way(name: str, **changes: Any) -> dict[str, Any]:
    plain = {"name": name, "is_favourite": False, "large_bytes_per_s": None, "small_s": None, "failures": 0}
    return {**plain, "rests_s": 0.0, **changes}


def judge(prefill: dict[str, Any], decode: dict[str, Any] | None = None) -> list[Finding]:
    return findings([RankAnswer(PREFILL, "a:1", prefill), RankAnswer(DECODE, "a:2", decode or stats())])


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(-3, 3))
def test_only_a_ledger_that_does_not_balance_is_a_fault(held: int, released: int, expired: int, off: int) -> None:
    blocks = account(held + released + expired + off, held, released, expired)
    found = judge(stats(blocks=blocks))
    assert [finding.subject for finding in found] == ["prefill-0"] * bool(off)
    assert all(f"= {off} blocks" in finding.what and "report it" in finding.remedy for finding in found)


def test_a_lease_is_a_fault_only_beyond_its_deadline() -> None:
    assert judge(stats(leases=[lease(age_s=29.0)])) == []
    (found,) = judge(stats(leases=[lease(age_s=42.0)]))
    assert found.what == "the send lease t1 of req-1 holds 2 blocks 12.0 s beyond its deadline"


def test_a_sender_in_quarantine_is_a_fault_of_the_pair() -> None:
    said = {"worker_id": "prefill-0", "epoch": 1, "times": 1, "left_s": 41.6, "reason": "3 hand-overs with wrong KV"}
    (found,) = judge(stats(), stats(quarantined=[said]))
    assert found.subject == "prefill-0 -> decode-0"
    assert found.what == "decode takes no KV of it for 42 s more: 3 hand-overs with wrong KV"
    assert "log /d" in found.remedy


def test_a_pair_that_failed_its_self_test_is_a_fault() -> None:
    failed = PairReport("prefill-0", "decode-0", Trust.FAILED, "no KV came over", 12.0)
    quarantined = PairReport("prefill-1", "decode-0", Trust.QUARANTINED, "wrong KV", 12.0)
    (found,) = of_self_tests([failed, quarantined, PairReport("prefill-2", "decode-0", Trust.UNTESTED)])
    assert str(found) == (
        "prefill-0 -> decode-0: they are not paired: no KV came over; it is tested again in 12 s; until then decode-0 "
        "computes these prompts itself"
    )


def test_a_worker_that_is_not_there_or_does_not_answer_is_a_fault() -> None:
    ended = replace(DECODE, state="ended", reason="exited with -9")
    silent = RankAnswer(PREFILL, "a:1", problem="the peer did not answer in time")
    assert [str(finding) for finding in findings([silent, RankAnswer(ended, "")])] == [
        "prefill-0: its KV endpoint a:1 does not answer: the peer did not answer in time; see whether process 11 "
        "hangs; its log is /p",
        "decode-0: it is ended (exited with -9); its log is /d",
    ]


def test_a_transport_set_aside_is_a_fault_while_its_peer_lives() -> None:
    ways = [way("shm", failures=3, rests_s=4.0), way("grpc")]
    (found,) = judge(stats(peers={"a:2": {"epoch": 1, "transports": ways}}))
    assert str(found) == "prefill-0 -> decode-0: shm failed 3 times in a row and rests 4 s more; the log /p says why"
    assert judge(stats(peers={"dead:9": {"epoch": 1, "transports": ways}})) == []
    ways[1] |= {"failures": 1, "rests_s": 1.0}
    assert judge(stats(peers={"a:2": {"epoch": 1, "transports": ways}}))[-1].what.startswith("no transport works")


def test_workers_that_differ_are_named_once_with_the_fields() -> None:
    other = replace(SAME, dtype="f32", block_size=32)
    decodes = [replace(DECODE, name=f"decode-{i}", fingerprint="f1", identity=other) for i in range(2)]
    answers = [RankAnswer(PREFILL, ""), *(RankAnswer(decode, "") for decode in decodes)]
    (found,) = findings(answers)
    assert found.subject == "prefill-0 and decode-0, decode-1"
    assert found.what == "they are never paired, for they differ in dtype (bf16 and f32), block_size (16 and 32)"


def test_the_page_shows_ledgers_leases_and_transports() -> None:
    ways = [way("tcp", is_favourite=True, large_bytes_per_s=2.5e9), way("grpc", small_s=0.0021)]
    sent = stats(leases=[lease(age_s=2.0)], peers={"a:2": {"epoch": 1, "transports": ways}})
    answers = [RankAnswer(PREFILL, "a:1", sent), RankAnswer(DECODE, "a:2", problem="late")]
    assert page(answers, findings(answers)) == [
        "WORKER     KV ADDRESS  UNIT    GRANTED  HELD  RELEASED  EXPIRED  IMBALANCE",
        "prefill-0  a:1         blocks  7        2     4         1        0",
        "prefill-0  a:1         bytes   70       20    40        10       0",
        "decode-0   a:2         -       -        -     -         -        -",
        "",
        "open leases:",
        "WORKER     SIDE  LEASE  OWNER  PEER      BLOCKS  AGE    DEADLINE",
        "prefill-0  send  t1     req-1  decode-0  2       2.0 s  in 28.0 s",
        "",
        "transports:",
        "WORKER     PEER      TRANSPORT  USED  LARGE      SMALL   FAILURES  RESTS",
        "prefill-0  decode-0  tcp        yes   2.50 GB/s  -       0         -",
        "prefill-0  decode-0  grpc             -          2.1 ms  0         -",
        "",
        "wrong:",
        "  decode-0: its KV endpoint a:2 does not answer: late; see whether process 12 hangs; its log is /d",
    ]
    assert page([RankAnswer(PREFILL, "")], [])[-3:] == ["transports: none", "", "all is well"]
