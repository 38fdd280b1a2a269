"""The planner sends each block of a prompt exactly once and in order, whatever the chunking and preemption."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.plan import NULL_BLOCK, HandoverPlanner, ReceiveParams, SendHold, SendParams, StepPlan, prompt_digest

BLOCK = 32
SEND = SendParams("t", "127.0.0.1:1", 30.0)
RECEIVE = ReceiveParams("t", 30.0)


@given(st.integers(1, 700), st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(0, 5), st.data())
def test_every_block_leaves_once_in_order(tokens: int, chunks: list[int], cached: int, data: st.DataObject) -> None:
    planner = HandoverPlanner(BLOCK)
    num_blocks = -(-tokens // BLOCK)
    computed = min(cached * BLOCK, (tokens - 1) // BLOCK * BLOCK)  # prefix hit: whole blocks, never the whole prompt
    ids = [1000 + i for i in range(num_blocks)]
    planner.open_send("r", SEND, digest="d", num_prompt_tokens=tokens, block_ids=ids)
    seen: list[tuple[int, int]] = []  # (position, physical id when sent)
    opens = 0
    while computed < tokens:
        if data.draw(st.booleans()) and data.draw(st.booleans()):  # preempted: other physical blocks from here on
            ids = [block_id + 5000 for block_id in ids]
            planner.replace_blocks("r", ids)
        computed = min(tokens, computed + chunks[len(seen) % len(chunks)])
        planner.advance_send("r", computed)
        plan = planner.take_step()
        opens += len(plan.send_opens)
        for part in plan.send_ranges:
            assert part.last == (computed >= tokens)
            seen += [(part.first_block + i, block_id) for i, block_id in enumerate(part.block_ids)]
            assert part.block_ids == tuple(ids[part.first_block : part.first_block + len(part.block_ids)])
    assert [position for position, _ in seen] == list(range(num_blocks))
    assert opens == 1
    planner.finish("r")
    assert planner.take_step() == StepPlan()


def test_request_that_ends_in_mid_prefill_aborts_its_send() -> None:
    planner = HandoverPlanner(BLOCK)
    planner.open_send("r", SEND, digest="d", num_prompt_tokens=100, block_ids=[1, 2, 3, 4])
    planner.advance_send("r", 64)
    assert planner.take_step().send_ranges[0].block_ids == (1, 2)
    planner.finish("r")
    assert planner.take_step().send_aborts == ("t",)


def test_request_that_ends_before_it_was_scheduled_leaves_nothing() -> None:
    planner = HandoverPlanner(BLOCK)
    planner.open_send("r", SEND, digest="d", num_prompt_tokens=100, block_ids=[1, 2, 3, 4])
    planner.finish("r")
    assert planner.take_step() == StepPlan()


@given(st.integers(1, 700), st.integers(0, 20))
def test_receive_covers_exactly_the_blocks_not_cached(tokens: int, cached_blocks: int) -> None:
    planner = HandoverPlanner(BLOCK)
    computed = min(cached_blocks, (tokens - 1) // BLOCK) * BLOCK
    count = planner.external_tokens("r", RECEIVE, num_prompt_tokens=tokens, num_computed_tokens=computed)
    assert count == (tokens - computed if tokens - computed > 1 else 0)
    if count == 0:
        return
    ids = list(range(100, 100 + -(-tokens // BLOCK)))
    planner.open_receive("r", RECEIVE, digest="d", num_prompt_tokens=tokens, num_external_tokens=count, block_ids=ids)
    (opened,) = planner.take_step().receive_opens
    assert opened.first_block * BLOCK == computed
    assert list(opened.block_ids) == ids[opened.first_block :]
    assert opened.num_blocks == len(ids)


def test_hand_over_serves_one_request_once() -> None:
    planner = HandoverPlanner(BLOCK)
    assert planner.external_tokens("a", RECEIVE, num_prompt_tokens=64, num_computed_tokens=0) == 64
    planner.open_receive("a", RECEIVE, digest="d", num_prompt_tokens=64, num_external_tokens=64, block_ids=[1, 2])
    # The same request after a preemption, and a sibling (n=2) with the same ticket, compute locally.
    assert planner.external_tokens("a", RECEIVE, num_prompt_tokens=64, num_computed_tokens=0) == 0
    assert planner.external_tokens("b", RECEIVE, num_prompt_tokens=64, num_computed_tokens=0) == 0
    planner.finish("b")
    planner.finish("a")
    assert planner.take_step().receive_cancels == ("t",)


def test_prompt_cached_whole_declines_the_hand_over_once() -> None:
    planner = HandoverPlanner(BLOCK)
    planner.refuse_receive("a", RECEIVE)
    planner.refuse_receive("a", RECEIVE)
    assert planner.take_step().receive_cancels == ("t",)


def test_digest_depends_on_tokens_and_adapter() -> None:
    digests = {
        prompt_digest([1, 2, 3]),
        prompt_digest([1, 2, 4]),
        prompt_digest([1, 2]),
        prompt_digest([1, 2, 3], "lora"),
        prompt_digest([1, 2, 3], "lora", "image"),
    }
    assert len(digests) == 5
    assert prompt_digest([1, 2, 3]) == prompt_digest((1, 2, 3))


@given(st.integers(2, 20), st.integers(0, 20), st.integers(0, 5))
def test_what_a_sliding_window_left_behind_is_not_asked_for(blocks: int, left_behind: int, cached: int) -> None:
    planner = HandoverPlanner(BLOCK)
    left_behind, cached = min(left_behind, blocks - 1), min(cached, blocks - 1)
    ids = [NULL_BLOCK] * left_behind + [100 + i for i in range(left_behind, blocks)]
    planner.open_receive(
        "r",
        RECEIVE,
        digest="d",
        num_prompt_tokens=blocks * BLOCK,
        num_external_tokens=(blocks - cached) * BLOCK,
        block_ids=ids,
    )
    (opened,) = planner.take_step().receive_opens
    first = max(left_behind, cached)
    assert (opened.first_block, opened.num_blocks, list(opened.block_ids)) == (first, blocks, ids[first:])


def sending(planner: HandoverPlanner, *, tokens: int, goes_on: bool) -> StepPlan:
    """Have a request of two blocks scheduled as a whole."""
    planner.open_send("r", SEND, digest="d", num_prompt_tokens=tokens, block_ids=[1, 2], goes_on=goes_on)
    planner.advance_send("r", tokens)
    return planner.take_step()


@pytest.mark.parametrize(("tokens", "goes_on", "is_final"), [(32, True, True), (20, False, True), (20, True, False)])
def test_the_last_block_is_written_again_by_a_request_that_goes_on(tokens: int, goes_on: bool, is_final: bool) -> None:
    (last,) = sending(HandoverPlanner(block_size=16), tokens=tokens, goes_on=goes_on).send_ranges
    assert (last.last, last.is_final) == (True, is_final)


def test_blocks_of_a_finished_request_are_held_if_the_engine_holds_any() -> None:
    holding, other = HandoverPlanner(16, holds_blocks=True), HandoverPlanner(16)
    for planner in (holding, other):
        sending(planner, tokens=20, goes_on=False)
    assert (holding.finish("r"), other.finish("r")) == (True, False)
    assert holding.take_step() == StepPlan(send_holds=(SendHold("r", "t"),))
    assert other.take_step() == StepPlan()
    assert not holding.finish("r")  # once


def test_a_request_that_was_never_offered_is_not_held() -> None:
    planner = HandoverPlanner(16, holds_blocks=True)
    planner.open_send("r", SEND, digest="d", num_prompt_tokens=20, block_ids=[1, 2])
    assert not planner.finish("r")


def test_blocks_of_a_preempted_request_are_called_back_each_time() -> None:
    planner = HandoverPlanner(16, holds_blocks=True)
    planner.preempt("r")
    assert planner.take_step() == StepPlan()
    sending(planner, tokens=20, goes_on=False)
    for _ in range(2):
        planner.preempt("r")
        assert planner.take_step() == StepPlan(send_call_backs=("t",))
    assert planner.finish("r")
