"""Layers of a language model: attention, MLP and experts, each with its projections."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .formats import ALL_BF16, Formats

Role: TypeAlias = Literal["attention", "mlp", "experts", "shared", "router", "lm_head"]


@dataclass(frozen=True)
class Projection:
    """One matmul, or one GPU's share of it, with weights `[out_features, in_features]`.

    Attributes:
        name: such as "qkv", "o", "gate_up", "down" or "lm_head".
        in_features: elements of one token's input.
        out_features: elements of one token's output.
        role: the part of `Formats` that its weights are stored in.
    """

    name: str
    in_features: int
    out_features: int
    role: Role = "mlp"

    @property
    def parameters(self) -> int:
        """Number of weights; a bias is not counted."""
        return self.in_features * self.out_features


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """A small attention that selects the tokens that a query attends to (DeepSeek sparse attention).

    Attributes:
        heads: its query heads.
        head_dim: elements of its one key per token, which are cached.
        top_k: most tokens that are selected.
        weighted: whether a projection weights the heads' scores, as in DeepSeek-V3.2.
    """

    heads: int
    head_dim: int
    top_k: int
    weighted: bool = True

    def projections(self, hidden_size: int, query_features: int) -> tuple[Projection, ...]:
        """Queries, key and the weights of the heads' scores; every GPU computes them.

        Args:
            hidden_size: elements of the layer's input, from which key and weights are projected.
            query_features: elements of what queries are projected from.
        """
        key = self.head_dim + (self.heads if self.weighted else 0)
        return (
            Projection("index_q", query_features, self.heads * self.head_dim, "attention"),
            Projection("index_k", hidden_size, key, "attention"),
        )


@dataclass(frozen=True, kw_only=True)
class GroupedQueryAttention:
    """Softmax attention whose query heads share key-value heads (GQA); MHA and MQA are its extremes.

    Attributes:
        q_heads: query heads, a multiple of `kv_heads`.
        kv_heads: key heads, and as many value heads.
        head_dim: elements of a key.
        v_head_dim: elements of a value; None if as many as of a key.
        window: most tokens that a query attends to, its own included; None without a window.
        chunked: whether the window is a chunk that starts anew (Llama 4) instead of one that slides.
        values_are_keys: whether one projection gives both; both are cached, as keys are then rotated.
        output_gate: whether the query projection also computes a gate of the output, as wide as it.
        indexer: selects the tokens attended to; None if a query attends to all in its window.
        softcap: c: scores s become c tanh(s / c); None leaves them.
        sinks: whether each query head has one more logit, an attention sink, whose value is 0.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int | None = None
    window: int | None = None
    chunked: bool = False
    values_are_keys: bool = False
    output_gate: bool = False
    indexer: Indexer | None = None
    softcap: float | None = None
    sinks: bool = False

    @property
    def value_dim(self) -> int:
        """Elements of a value."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def cached_elements(self) -> int:
        """Elements that a token adds to the cache."""
        index = 0 if self.indexer is None else self.indexer.head_dim
        return self.kv_heads * (self.head_dim + self.value_dim) + index

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        """The projections into and out of the attention, and those of its indexer."""
        values = 0 if self.values_are_keys else self.value_dim
        queries = self.q_heads * (self.head_dim + (self.value_dim if self.output_gate else 0))
        qkv = queries + self.kv_heads * (self.head_dim + values)
        indexer = () if self.indexer is None else self.indexer.projections(hidden_size, hidden_size)
        return (
            Projection("qkv", hidden_size, qkv, "attention"),
            *indexer,
            Projection("o", self.q_heads * self.value_dim, hidden_size, "attention"),
        )


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (MLA): all heads share one latent a token (DeepSeek-V2, arXiv 2405.04434).

    Attributes:
        q_heads: query heads.
        q_rank: elements of the latent query; None if queries are projected in one step.
        kv_rank: elements of the latent that keys and values are computed from.
        nope_head_dim: elements of a head's key that come from the latent.
        rope_head_dim: elements of the one rotary key that all heads share.
        v_head_dim: elements of a head's value.
        output_gate: whether a projection of the layer's input gates the output.
        indexer: selects the tokens attended to; None if a query attends to all.
    """

    q_heads: int
    q_rank: int | None
    kv_rank: int
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int
    output_gate: bool = False
    indexer: Indexer | None = None

    @property
    def latent_elements(self) -> int:
        """Elements of a token's latent and rotary key, which all heads attend to."""
        return self.kv_rank + self.rope_head_dim

    @property
    def cached_elements(self) -> int:
        """Elements that a token adds to the cache."""
        return self.latent_elements + (0 if self.indexer is None else self.indexer.head_dim)

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        """The projections into and out of the attention, and those of its indexer.

        kv_b, the latent's projection to keys and values, has the same weights whether it is applied to each
        cached token or, as in decoding, absorbed into queries and outputs.
        """
        heads = self.q_heads
        q = heads * (self.nope_head_dim + self.rope_head_dim)
        queries = [("q", hidden_size, q)]
        if self.q_rank is not None:
            queries = [("q_a", hidden_size, self.q_rank), ("q_b", self.q_rank, q)]
        gate = [("gate", hidden_size, heads * self.v_head_dim)] if self.output_gate else []
        shapes = [
            *queries,
            ("kv_a", hidden_size, self.latent_elements),
            ("kv_b", self.kv_rank, heads * (self.nope_head_dim + self.v_head_dim)),
            *gate,
            ("o", heads * self.v_head_dim, hidden_size),
        ]
        own = tuple(Projection(name, k, n, "attention") for name, k, n in shapes)
        if self.indexer is None:
            return own
        return own + self.indexer.projections(hidden_size, self.q_rank or hidden_size)


@dataclass(frozen=True, kw_only=True)
class LinearAttention:
    """Attention with a state of constant size in place of a cache: linear attention, delta rules, Mamba.

    Attributes:
        kind: such as "gated DeltaNet", "KDA", "lightning attention" or "Mamba-2".
        heads: heads, which tensor parallelism splits.
        state_elements: elements of a sequence's recurrent state, convolution included, in `state_bytes` each.
        state_bytes: bytes of an element of the state.
        operations_per_token: operations of the recurrence for a token, beside the projections.
        in_features_out: elements of all input projections' outputs per token.
        out_features_in: elements that the output projection reads per token.
        low_rank_parameters: weights of further small projections, which every GPU computes.
    """

    kind: str
    heads: int
    state_elements: int
    state_bytes: int
    operations_per_token: int
    in_features_out: int
    out_features_in: int
    low_rank_parameters: int = 0

    cached_elements = 0

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        """The projections into and out of the attention, without small ones."""
        return (
            Projection("in", hidden_size, self.in_features_out, "attention"),
            Projection("out", self.out_features_in, hidden_size, "attention"),
        )


Attention: TypeAlias = GroupedQueryAttention | LatentAttention | LinearAttention


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A dense MLP.

    Attributes:
        intermediate_size: elements between its projections.
        gated: whether a gate of the same size multiplies them (SwiGLU, GeGLU).
    """

    intermediate_size: int
    gated: bool = True

    def projections(
        self, hidden_size: int, tensor_parallel: int = 1, *, role: Role = "mlp"
    ) -> tuple[Projection, Projection]:
        """One GPU's share: the intermediate elements are split."""
        inner = math.ceil(self.intermediate_size / tensor_parallel)
        name, wide = ("gate_up", 2 * inner) if self.gated else ("up", inner)
        return (
            Projection(name, hidden_size, wide, role),
            Projection("down", inner, hidden_size, role),
        )


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts (MoE) in place of a layer's MLP.

    Attributes:
        count: routed experts.
        per_token: routed experts that the router picks for a token.
        expert: one routed expert.
        shared: the shared experts that every token passes through, as one MLP; None without.
        hidden_size: elements of a routed expert's input where it is not the model's; None where it is.
    """

    count: int
    per_token: int
    expert: Mlp
    shared: Mlp | None = None
    hidden_size: int | None = None

    def parameters(self, hidden_size: int, routed: int) -> int:
        """Number of weights of the router, the shared experts and a number of routed experts."""
        inner = hidden_size if self.hidden_size is None else self.hidden_size
        shared = 0 if self.shared is None else _parameters(self.shared.projections(hidden_size))
        return hidden_size * self.count + shared + routed * _parameters(self.expert.projections(inner))


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers of one shape; their order in the model does not matter.

    Attributes:
        count: number of layers.
        attention: their attention; None where a layer has none.
        mlp: their MLP or experts; None where a layer has neither.
        formats: formats of their weights.
        other_parameters: a layer's norms, biases, convolutions and the like, which no projection counts.
    """

    count: int
    attention: Attention | None
    mlp: Mlp | Experts | None
    formats: Formats = ALL_BF16
    other_parameters: int = 0

    @property
    def replicated_parameters(self) -> int:
        """Weights that every GPU holds in full: the others, and small projections of linear attention."""
        linear = self.attention if isinstance(self.attention, LinearAttention) else None
        return self.other_parameters + (0 if linear is None else linear.low_rank_parameters)

    def parameters(self, hidden_size: int, *, routed: int | None = None) -> int:
        """Number of a layer's weights, of `routed` routed experts if given, of all otherwise."""
        found = self.replicated_parameters
        if self.attention is not None:
            found += _parameters(self.attention.projections(hidden_size))
        if isinstance(self.mlp, Experts):
            found += self.mlp.parameters(hidden_size, self.mlp.count if routed is None else routed)
        elif self.mlp is not None:
            found += _parameters(self.mlp.projections(hidden_size))
        return found


def _parameters(projections: tuple[Projection, ...]) -> int:
    return sum(projection.parameters for projection in projections)
