"""The ledger balances whatever happens: granted = held + released + expired, in blocks and bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.ledger import End, LeaseLedger, Side

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
