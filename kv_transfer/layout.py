"""Which rank holds which layers and heads of a KV cache, and what must move between pools of unequal parallel sizes.

Pure arithmetic on sizes, after vLLM's own rules: a stage of the pipeline has a run of layers (get_pp_indices of
vllm/distributed/utils.py), a rank of tensor parallelism a run of KV heads, or, with more ranks than heads, one head
that several ranks hold alike (QKVParallelLinear of vllm/model_executor/layers/linear.py). Must not know tensors or
transports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.errors import PeerMismatch


@dataclass(frozen=True, slots=True)
class Sharding:
    """How one engine spreads the KV cache of a model over its ranks; rank = stage * tensor_parallel + its place in it.

    Raises PeerMismatch for sizes that vLLM would refuse.
    """

    num_layers: int
    num_kv_heads: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    def __post_init__(self) -> None:
        heads, ranks = self.num_kv_heads, self.tensor_parallel
        if min(self.num_layers, heads, ranks, self.pipeline_parallel) < 1 or (heads % ranks and ranks % heads):
            raise PeerMismatch(
                f"{heads} KV heads cannot be spread over tensor_parallel {ranks}: neither divides the other"
            )
        if self.pipeline_parallel > self.num_layers:
            raise PeerMismatch(
                f"{self.num_layers} layers cannot be spread over pipeline_parallel {self.pipeline_parallel}"
            )

    @property
    def num_ranks(self) -> int:
        """Ranks of all stages."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def heads_per_rank(self) -> int:
        """KV heads that one rank holds; more ranks than heads hold one each."""
        return max(1, self.num_kv_heads // self.tensor_parallel)

    def layers(self, rank: int) -> range:
        """Return the layers of a rank's stage; what is left over goes to the stages before the last, one each."""
        stage, stages = rank // self.tensor_parallel, self.pipeline_parallel
        each, left = divmod(self.num_layers, stages)
        sizes = [each] * stages
        for place in range(2, left + 2):
            sizes[-place] += 1
        start = sum(sizes[:stage])
        return range(start, start + sizes[stage])

    def heads(self, rank: int) -> range:
        """Return the KV heads of a rank."""
        place = rank % self.tensor_parallel
        start = place * self.num_kv_heads // self.tensor_parallel
        return range(start, start + self.heads_per_rank)


@dataclass(frozen=True, slots=True)
class Flow:
    """What one rank of prefill sends to one rank of decode, of every block: some layers, some heads of each."""

    source_rank: int
    target_rank: int
    layers: range  # of the model
    heads: range  # of the model


@dataclass(frozen=True, slots=True)
class BlockShape:
    """A block of one layer at one rank, in bytes: `outer` times all of the rank's heads, each `head_bytes`.

    Heads are outermost on a CPU, so `outer` is 1; where tokens come before heads it is 2 x block size (keys, values).
    """

    outer: int
    num_heads: int
    head_bytes: int

    @property
    def block_bytes(self) -> int:
        """The whole block."""
        return self.outer * self.num_heads * self.head_bytes

    def spans(self, first_head: int, num_heads: int) -> Iterator[tuple[int, int]]:
        """Yield offset and size of the bytes of some of the rank's heads, in order; one span where they are whole."""
        if num_heads == self.num_heads:
            yield 0, self.block_bytes
            return
        for index in range(self.outer):
            yield (index * self.num_heads + first_head) * self.head_bytes, num_heads * self.head_bytes


def flows(source: Sharding, target: Sharding) -> tuple[Flow, ...]:
    """List what must move so that every rank of `target` has all it holds, each byte from exactly one rank of `source`.

    Ranks that hold a head alike share the work. Raises PeerMismatch when the two are of different models.
    """
    if (source.num_layers, source.num_kv_heads) != (target.num_layers, target.num_kv_heads):
        raise PeerMismatch(
            f"{source.num_layers} layers of {source.num_kv_heads} KV heads and {target.num_layers} of "
            f"{target.num_kv_heads} are no KV cache of one model"
        )
    return tuple(flow for rank in range(target.num_ranks) for flow in _into(rank, source, target))


def _into(rank: int, source: Sharding, target: Sharding) -> Iterator[Flow]:
    """Yield the flows into one rank: a stage and a set of heads at a time."""
    copies = max(1, source.tensor_parallel // source.num_kv_heads)  # ranks of a stage that hold the same head
    for stage in range(source.pipeline_parallel):
        first = stage * source.tensor_parallel
        layers = _common(source.layers(first), target.layers(rank))
        if not layers:
            continue
        for group in range(0, source.tensor_parallel, copies):
            heads = _common(source.heads(first + group), target.heads(rank))
            if heads:
                yield Flow(first + group + rank % copies, rank, layers, heads)


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))
