"""Re-slicing a KV cache between unequal parallel sizes.

Invariants, for all divisor pairs, stages and numbers of KV heads: every rank of the target gets every byte of the heads
and layers it holds exactly once, at its place, and nothing else; ranks that hold a head alike have an equal share in
sending it, to within one; equal sizes move whole blocks from each rank to its equal.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import PeerMismatch
from kv_transfer.layout import BlockShape, Flow, Sharding, flows

NUM_BLOCKS, HEAD_BYTES = 2, 3
SIZES = st.sampled_from((1, 2, 3, 4, 6, 8, 16))
OUTERS = st.sampled_from((1, 4))  # heads outermost, or tokens
Cache = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Sharding, Sharding]:
    num_layers, num_heads = draw(st.integers(1, 9)), draw(SIZES)

    def fits(ranks: int) -> bool:
        return num_heads % ranks == 0 or ranks % num_heads == 0

    sizes = [(draw(SIZES.filter(fits)), draw(st.integers(1, min(4, num_layers)))) for _ in range(2)]
    source, target = (Sharding(num_layers, num_heads, tensor, pipeline) for tensor, pipeline in sizes)
    return source, target


def caches(sharding: Sharding, outer: int, *, filled: bool) -> list[Cache]:
    """Make every rank's cache, (layers, blocks, bytes): each byte names its layer, block, head and place, or is -1."""
    made = []
    for rank in range(sharding.num_ranks):
        layers, heads = sharding.layers(rank), sharding.heads(rank)
        names = np.empty((len(layers), NUM_BLOCKS, outer, len(heads), HEAD_BYTES), dtype=np.int64)
        for index in np.ndindex(names.shape):
            layer, block, place, head, byte = index
            name = (layers[layer], block, heads[head], place, byte)
            names[index] = np.ravel_multi_index(name, (16, NUM_BLOCKS, 16, outer, HEAD_BYTES)) if filled else -1
        made.append(names.reshape(len(layers), NUM_BLOCKS, -1))
    return made


def move(flow: Flow, source: Sharding, target: Sharding, outer: int, sent: list[Cache], landed: list[Cache]) -> None:
    """Do what one flow says, block by block, by the spans of either side."""
    ends = []
    for sharding, rank in ((source, flow.source_rank), (target, flow.target_rank)):
        held = sharding.heads(rank)
        shape = BlockShape(outer, len(held), HEAD_BYTES)
        places = [
            at
            for offset, size in shape.spans(flow.heads.start - held.start, len(flow.heads))
            for at in range(offset, offset + size)
        ]
        ends.append((sharding.layers(rank), places))
    (source_layers, source_places), (target_layers, target_places) = ends
    for layer in flow.layers:
        into = landed[flow.target_rank][layer - target_layers.start]
        assert (into[:, target_places] == -1).all(), "a byte comes twice"
        into[:, target_places] = sent[flow.source_rank][layer - source_layers.start][:, source_places]


@settings(max_examples=150, deadline=None)
@given(pairs(), OUTERS)
def test_every_byte_goes_exactly_once_where_it_belongs(pair: tuple[Sharding, Sharding], outer: int) -> None:
    source, target = pair
    sent, landed = caches(source, outer, filled=True), caches(target, outer, filled=False)
    for flow in flows(source, target):
        move(flow, source, target, outer, sent, landed)
    for have, want in zip(landed, caches(target, outer, filled=True), strict=True):
        assert np.array_equal(have, want)


@given(pairs())
def test_ranks_that_hold_a_head_alike_share_the_work(pair: tuple[Sharding, Sharding]) -> None:
    source, target = pair
    copies = max(1, source.tensor_parallel // source.num_kv_heads)
    for head in range(source.num_kv_heads):
        sent = Counter(flow.source_rank for flow in flows(source, target) if head in flow.heads and 0 in flow.layers)
        shares = [sent[rank] for rank in range(source.tensor_parallel) if head in source.heads(rank)]
        assert len(shares) == copies
        assert max(shares) - min(shares) <= 1


@given(pairs())
def test_equal_sizes_move_whole_blocks_between_equal_ranks(pair: tuple[Sharding, Sharding]) -> None:
    sharding, _ = pair
    for flow in flows(sharding, sharding):
        assert flow.layers == sharding.layers(flow.target_rank)
        assert flow.heads == sharding.heads(flow.target_rank) == sharding.heads(flow.source_rank)
        assert sharding.layers(flow.source_rank) == sharding.layers(flow.target_rank)
    if sharding.tensor_parallel <= sharding.num_kv_heads:
        assert [(f.source_rank, f.target_rank) for f in flows(sharding, sharding)] == [
            (rank, rank) for rank in range(sharding.num_ranks)
        ]


def test_layers_left_over_go_to_the_stages_before_the_last_one() -> None:
    # vllm.distributed.utils.get_pp_indices(30, stage, 4) is (0, 7), (7, 15), (15, 23), (23, 30).
    stages = Sharding(30, 4, 1, 4)
    assert [stages.layers(rank) for rank in range(4)] == [range(0, 7), range(7, 15), range(15, 23), range(23, 30)]


def test_spans_of_tokens_before_heads_are_cut_by_token() -> None:
    assert list(BlockShape(2, 4, 8).spans(1, 2)) == [(8, 16), (40, 16)]
    assert list(BlockShape(2, 4, 8).spans(0, 4)) == [(0, 64)]
    assert list(BlockShape(1, 4, 8).spans(3, 1)) == [(24, 8)]


@pytest.mark.parametrize(
    ("sizes", "why"), [((4, 6, 4), "neither divides"), ((2, 4, 1, 3), "cannot be spread over pipe")]
)
def test_sizes_that_cannot_be_are_refused(sizes: tuple[int, ...], why: str) -> None:
    with pytest.raises(PeerMismatch, match=why):
        Sharding(*sizes)


def test_two_models_are_refused() -> None:
    with pytest.raises(PeerMismatch, match="no KV cache of one model"):
        flows(Sharding(4, 4), Sharding(4, 8))
