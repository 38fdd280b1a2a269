"""Which pairs get requests, and when each is tested."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from core.policy.pair_trust import FIRST_RETRY_S, LONGEST_RETRY_S, SIMULATED, Pair, PairTrust, Trust
from core.types import Quarantined, Role, WorkerView
from tests.support.views import worker

PREFILL, DECODE = worker("prefill-0", Role.PREFILL), worker("decode-0", Role.DECODE)
PAIR = Pair("prefill-0", "decode-0")


def trusted(*workers: WorkerView) -> PairTrust:
    trust = PairTrust(self_test=True)
    trust.follow(workers, 0.0)
    for pair in trust.due(0.0, limit=99):
        trust.ended(pair, trust.began(pair), "", 0.0)
    return trust


def restarted(view: WorkerView) -> WorkerView:
    return replace(view, record=replace(view.record, epoch=2), hello=replace(view.hello, epoch=2))


def accusing(view: WorkerView, *, times: int = 1, left_s: float = 60.0, epoch: int = 1) -> WorkerView:
    said = Quarantined("prefill-0", epoch, times, left_s, "wrong KV")
    return replace(view, state=replace(view.state, quarantined=(said,)))


def test_a_pair_is_used_once_its_test_agreed_and_tested_once_for_two_epochs() -> None:
    trust = PairTrust(self_test=True)
    assert not trust.allows(*PAIR)
    trust.follow((PREFILL, DECODE), 0.0)
    assert not trust.allows(*PAIR)
    assert trust.due(0.0, limit=4) == [PAIR]
    epochs = trust.began(PAIR)
    assert trust.due(0.0, limit=4) == []
    trust.ended(PAIR, epochs, "", 1.0)
    assert trust.allows(*PAIR)
    trust.follow((replace(PREFILL, inflight_requests=3), DECODE), 2.0)
    assert trust.allows(*PAIR)
    trust.follow((PREFILL, restarted(DECODE)), 3.0)
    assert not trust.allows(*PAIR)
    assert trust.due(3.0, limit=4) == [PAIR]


def test_a_test_of_an_earlier_epoch_says_nothing() -> None:
    trust = PairTrust(self_test=True)
    trust.follow((PREFILL, DECODE), 0.0)
    epochs = trust.began(PAIR)
    trust.follow((restarted(PREFILL), DECODE), 0.1)
    trust.ended(PAIR, epochs, "", 0.2)
    assert not trust.allows(*PAIR)
    trust.follow((), 0.3)
    trust.ended(PAIR, epochs, "", 0.4)
    assert trust.report(0.4) == []


def test_a_failed_pair_says_why_and_is_tested_again_later_and_later() -> None:
    trust = PairTrust(self_test=True)
    trust.follow((PREFILL, DECODE), 0.0)
    now_s, waits_s = 0.0, []
    for _ in range(8):
        (pair,) = trust.due(now_s, limit=4)
        trust.ended(pair, trust.began(pair), "tokens differ", now_s)
        (said,) = trust.report(now_s)
        assert (said.trust, said.reason) == (Trust.FAILED, "tokens differ")
        assert trust.due(now_s + said.retry_in_s - 0.01, limit=4) == []
        assert trust.next_due_s() == now_s + said.retry_in_s
        waits_s.append(said.retry_in_s)
        now_s += said.retry_in_s
    assert waits_s == [min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**i) for i in range(8)]
    (pair,) = trust.due(now_s, limit=4)
    trust.ended(pair, trust.began(pair), "", now_s)
    assert trust.allows(*PAIR)


def test_quarantine_ends_in_a_test_and_one_that_is_told_again_is_the_same() -> None:
    trust = trusted(PREFILL, DECODE)
    trust.follow((PREFILL, accusing(DECODE)), 10.0)
    assert not trust.allows(*PAIR)
    (said,) = trust.report(10.0)
    assert (said.trust, said.reason, said.retry_in_s) == (Trust.QUARANTINED, "wrong KV", 60.0)
    assert trust.due(69.0, limit=4) == []
    trust.follow((PREFILL, DECODE, worker("decode-1", Role.DECODE)), 65.0)
    trust.follow((PREFILL, accusing(DECODE)), 69.0)
    assert trust.due(70.0, limit=4) == [PAIR]
    epochs = trust.began(PAIR)
    trust.follow((PREFILL, accusing(DECODE, times=2)), 71.0)  # while the test runs
    trust.ended(PAIR, epochs, "", 72.0)
    assert not trust.allows(*PAIR)


def test_an_accusation_of_an_earlier_epoch_is_of_another_worker() -> None:
    trust = trusted(PREFILL, accusing(DECODE, epoch=7))
    assert trust.allows(*PAIR)


def test_without_tests_and_for_simulated_engines_pairs_are_used_at_once() -> None:
    untested = PairTrust(self_test=False)
    assert untested.allows(*PAIR)
    untested.follow((PREFILL, accusing(DECODE)), 0.0)
    assert not untested.allows(*PAIR)
    simulated = [replace(view, hello=replace(view.hello, kv_address=f"{SIMULATED}x")) for view in (PREFILL, DECODE)]
    trust = PairTrust(self_test=True)
    trust.follow(simulated, 0.0)
    assert trust.allows(*PAIR)


def test_workers_of_other_fingerprints_are_no_pair() -> None:
    trust = PairTrust(self_test=True)
    trust.follow((PREFILL, worker("decode-0", Role.DECODE, model="b")), 0.0)
    assert trust.due(0.0, limit=4) == []
    assert trust.report(0.0) == []


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_every_pair_is_tested_once_and_no_worker_twice_at_a_time(senders: int, receivers: int, limit: int) -> None:
    workers = [worker(f"prefill-{i}", Role.PREFILL) for i in range(senders)]
    workers += [worker(f"decode-{i}", Role.DECODE) for i in range(receivers)]
    trust = PairTrust(self_test=True)
    trust.follow(workers, 0.0)
    tested: list[Pair] = []
    while due := trust.due(0.0, limit=limit):
        assert len(due) <= limit
        assert len({w for pair in due for w in pair}) == 2 * len(due)
        tested += due
        for pair, epochs in [(pair, trust.began(pair)) for pair in due]:
            trust.ended(pair, epochs, "", 0.0)
    assert len(tested) == len(set(tested)) == senders * receivers
    assert {w for pair in tested[: max(senders, receivers)] for w in pair} == {w.record.worker_id for w in workers}
