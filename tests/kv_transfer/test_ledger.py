"""The ledger balances whatever happens: granted = held + released + expired, in blocks and bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.ledger import End, Lease, LeaseLedger, Side, State

steps = st.lists(
    st.tuples(st.sampled_from(["grant", "end"]), st.sampled_from(Side), st.integers(0, 5), st.integers(0, 9)),
    max_size=60,
)


@given(steps, st.sampled_from(End))
def test_always_balanced_and_empty_at_the_end(actions: list[tuple[str, Side, int, int]], how: End) -> None:
    ledger = LeaseLedger(lambda: 0.0)
    open_keys: set[tuple[Side, str]] = set()
    for action, side, number, blocks in actions:
        key = (side, f"t{number}")
        if action == "end":
            assert ledger.end(*key, how) == (key in open_keys)
            open_keys.discard(key)
        elif key in open_keys:
            with pytest.raises(ValueError, match="already open"):
                ledger.grant(*key, owner="r", num_blocks=blocks, num_bytes=blocks * 8, lease_s=1)
        else:
            ledger.grant(*key, owner="r", num_blocks=blocks, num_bytes=blocks * 8, lease_s=1)
            open_keys.add(key)
        if number % 2:  # how far a hand-over came changes no account
            ledger.transferring(*key, peer="p", epoch=3)
            ledger.progress(*key)
        elif blocks % 2:
            ledger.landed(*key)
        assert ledger.imbalances == 0
        assert ledger.blocks().imbalance == 0
        assert ledger.bytes().imbalance == 0
        assert {(lease.side, lease.transfer_id) for lease in ledger.open_leases} == open_keys
    for key in open_keys:
        ledger.end(*key, how)
    assert ledger.blocks().held == ledger.bytes().held == 0
    assert ledger.blocks().imbalance == 0


def test_deadline_comes_from_the_clock() -> None:
    ledger = LeaseLedger(lambda: 100.0)
    lease = ledger.grant(Side.SEND, "t", owner="r", num_blocks=1, num_bytes=8, lease_s=2.5)
    assert (lease.granted_s, lease.deadline_s) == (100.0, 102.5)


def test_lease_says_whose_it_is_how_far_it_came_and_when_the_peer_was_heard_of() -> None:
    now = [100.0]
    ledger = LeaseLedger(lambda: now[0])
    ledger.grant(Side.RECEIVE, "t", owner="r", num_blocks=1, num_bytes=8, lease_s=5)
    now[0] = 101.0
    ledger.transferring(Side.RECEIVE, "t", peer="prefill-0", epoch=4)
    now[0] = 102.0
    ledger.progress(Side.RECEIVE, "t")
    expected = Lease("t", Side.RECEIVE, "r", 1, 8, 100.0, 105.0, 102.0, State.TRANSFERRING, "prefill-0", 4)
    assert ledger.open_leases == (expected,)
    ledger.landed(Side.RECEIVE, "t")
    ledger.end(Side.RECEIVE, "t", End.RELEASED)
    assert ledger.reached == {
        State.GRANTED: 1,
        State.TRANSFERRING: 1,
        State.LANDED: 1,
        State.RELEASED: 1,
        State.EXPIRED: 0,
    }


def test_imbalance_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ledger = LeaseLedger(lambda: 0.0)
    ledger._granted[0] += 1  # a lease that nobody holds
    for name in ("a", "b"):
        ledger.grant(Side.SEND, name, owner="r", num_blocks=1, num_bytes=8, lease_s=1)
    assert ledger.imbalances == 2
    assert [record.getMessage()[:32] for record in caplog.records] == ["the KV ledger does not balance: "]
    caplog.clear()  # of what no_errors_logged would find
