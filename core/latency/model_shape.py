"""The shape of a transformer, as far as time and memory depend on it.

Owns the value, the matrices a layer multiplies by, and the bytes of weights and KV cache. Must not know devices
(core.latency.device), nor files other than by their text (core.latency.model_config reads config.json).
"""

from __future__ import annotations

from dataclasses import dataclass

_VALUE_BYTES = 2.0  # of activations, KV values and unquantised weights: bfloat16 or float16


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix on one device: tokens x inputs -> tokens x outputs, `count` times in the model."""

    outputs: int
    inputs: int
    count: int
    weight_bytes: float  # of one value

    @property
    def values(self) -> int:
        """Values of all `count` of them."""
        return self.outputs * self.inputs * self.count


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what is cached is one small vector per token."""

    query_rank: int  # 0: the query is projected directly
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed feed-forward layers, gated like the others."""

    count: int
    per_token: int
    intermediate: int
    shared_intermediate: int = 0  # of all shared experts together
    layers: int = 0  # how many layers route; the others are dense

    def touched(self, tokens: float) -> float:
        """Return how many distinct experts `tokens` tokens are expected to use when they choose independently."""
        return self.count * (1.0 - float((1.0 - self.per_token / self.count) ** tokens))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One decoder-only transformer."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of dense layers; 0 when all route
    vocab: int
    tied: bool = False  # the output matrix is the embedding
    gated: bool = True  # three matrices in a feed-forward layer, else two
    weight_bytes: float = _VALUE_BYTES  # of one quantised value; embeddings and output stay at 2
    attention_weight_bytes: float | None = None  # where attention is quantised less than the rest; None: the same
    experts: Experts | None = None
    latent: Latent | None = None
    window: int = 0  # tokens that the windowed layers look back
    windowed_layers: int = 0  # layers whose KV does not grow: sliding windows, and linear attention as if it were one
    kv_value_bytes: float = _VALUE_BYTES  # the engine's choice; 1 for an fp8 cache
    max_model_len: int | None = None

    def fits_tensor_parallel(self, size: int) -> bool:
        """Say whether `size` devices can share the heads and the feed-forward layers evenly."""
        widths = [self.intermediate] if self.intermediate else []
        widths += [self.experts.intermediate] if self.experts else []
        kv = self.kv_heads % size == 0 or size % self.kv_heads == 0
        return self.heads % size == 0 and (kv or self.latent is not None) and all(w % size == 0 for w in widths)

    def dense_matrices(self, tensor_parallel: int) -> tuple[Matrix, ...]:
        """List the matrices that every token meets, on one of `tensor_parallel` devices; no experts, no output."""
        found = list(self._attention(tensor_parallel))
        routed = self.experts.layers if self.experts else 0
        if self.intermediate and self.layers > routed:
            found += self._feed_forward(self.intermediate / tensor_parallel, self.layers - routed)
        if self.experts and routed:
            found.append(Matrix(self.experts.count, self.hidden, routed, _VALUE_BYTES))
            if self.experts.shared_intermediate:
                found += self._feed_forward(self.experts.shared_intermediate / tensor_parallel, routed)
        return tuple(found)

    def expert_matrices(self, tensor_parallel: int) -> tuple[Matrix, ...]:
        """List the matrices of one expert on one device, `count` being the layers that route."""
        if self.experts is None:
            return ()
        return tuple(self._feed_forward(self.experts.intermediate / tensor_parallel, self.experts.layers))

    def output_matrix(self, tensor_parallel: int) -> Matrix:
        """Return the matrix from hidden state to logits, split by vocabulary."""
        return Matrix(max(1, self.vocab // tensor_parallel), self.hidden, 1, _VALUE_BYTES)

    @property
    def parameters(self) -> int:
        """Count all weights but norms and biases, which are too few to matter."""
        routed = sum(m.values for m in self.expert_matrices(1)) * (self.experts.count if self.experts else 0)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return sum(m.values for m in self.dense_matrices(1)) + routed + embeddings

    def weights_on_device(
        self, tensor_parallel: int, pipeline_parallel: int = 1, expert_devices: int | None = None
    ) -> float:
        """Return the bytes of weights on the fullest of the devices: a stage that holds an embedding too."""
        dense = sum(m.values * m.weight_bytes for m in self.dense_matrices(tensor_parallel))
        routed = sum(m.values * m.weight_bytes for m in self.expert_matrices(expert_devices or tensor_parallel))
        layers = dense + routed * (self.experts.count if self.experts else 0)
        matrix = self.output_matrix(tensor_parallel)
        ends = 1 if self.tied or pipeline_parallel > 1 else 2
        return layers / pipeline_parallel + ends * matrix.values * matrix.weight_bytes

    @property
    def kv_values_per_layer(self) -> int:
        """Values that one layer caches for one token."""
        if self.latent:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim

    def kv_bytes_per_token(self) -> int:
        """Return the bytes of a token's KV in all layers whose cache grows, each value once."""
        return round((self.layers - self.windowed_layers) * self.kv_values_per_layer * self.kv_value_bytes)

    def kv_on_device(self, tensor_parallel: int, pipeline_parallel: int) -> float:
        """Return the bytes of a token's KV on one device; heads are copied where there are fewer than devices."""
        split = 1 if self.latent else min(tensor_parallel, self.kv_heads)
        return self.kv_bytes_per_token() / split / pipeline_parallel

    def _attention(self, tensor_parallel: int) -> list[Matrix]:
        heads = self.heads / tensor_parallel
        value_bytes = self.attention_weight_bytes or self.weight_bytes

        def matrix(outputs: float, inputs: float) -> Matrix:
            return Matrix(round(outputs), round(inputs), self.layers, value_bytes)

        if self.latent is None:
            kv_heads = max(1.0, self.kv_heads / tensor_parallel)
            projections = matrix((heads + 2 * kv_heads) * self.head_dim, self.hidden)
            return [projections, matrix(self.hidden, heads * self.head_dim)]
        low = self.latent
        query_inputs = low.query_rank or self.hidden
        found = [
            matrix(low.query_rank + low.kv_rank + low.rope_dim, self.hidden),
            matrix(heads * (low.nope_dim + low.rope_dim), query_inputs),
            matrix(heads * (low.nope_dim + low.value_dim), low.kv_rank),
        ]
        return [*found, matrix(self.hidden, heads * low.value_dim)]

    def _feed_forward(self, intermediate: float, count: int) -> list[Matrix]:
        width = max(1, round(intermediate))
        up = Matrix(width * (2 if self.gated else 1), self.hidden, count, self.weight_bytes)
        return [up, Matrix(self.hidden, width, count, self.weight_bytes)]
