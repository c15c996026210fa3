"""Operations and bytes of one forward of a language model, part by part, in prefill and in a decode step.

All figures are those of one GPU under tensor parallelism: column-parallel and row-parallel projections, and a
share of the heads. A part occurs `times` times, once in each layer that has it; its figures are those of one
occurrence.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from msgspec.structs import replace

from ..core.cases import MatmulShape
from ..core.errors import UsageError
from ..core.language_model import LanguageModel, Projection

STORED_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
"""Bytes of a weight or a cached element, without the scales of 8-bit and 4-bit formats."""

ACTIVATION_BYTES = 2
"""Bytes of an activation: 16 bits, whatever the dtype of the weights."""

_ROW_PARALLEL = ("o", "down")  # in_features are split among GPUs; an all-reduce adds up the outputs
_REPLICATED = ("q_a", "kv_a", "router")  # small, and every GPU needs all of their outputs


class Matmul(MatmulShape[float], frozen=True, kw_only=True):
    """A projection's GEMM; the experts of a layer are one grouped GEMM.

    `rows` are tokens, for experts the average over those with tokens; `out_features` are those of all experts
    with tokens, side by side.

    Attributes:
        name: name of the projection.
        times: number of these GEMMs in one forward.
        groups: number of experts with tokens, each with its own rows; 1 for other projections.
    """

    cached: ClassVar[float] = 0.0
    name: str
    times: int
    groups: float = 1.0

    @property
    def weights(self) -> float:
        """Elements of the weight."""
        return self.in_features * self.out_features

    @property
    def activation_bytes(self) -> float:
        """Bytes of input and output."""
        return self.rows * (self.groups * self.in_features + self.out_features) * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal attention of sequences of equal length, perhaps within a sliding window.

    Attributes:
        name: "attention" or "attention (window)".
        times: number of layers with it.
        sequences: number of prompts, or of sequences with one query token each.
        tokens: tokens of a prompt; in a decode step, tokens in each sequence's cache.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a key.
        v_head_dim: elements of a value.
        window: most tokens that a query attends to; None without a window.
        decode: whether each sequence has one query token, at its end.
        cached_elements: cached elements per token.
    """

    weights: ClassVar[float] = 0.0
    name: str
    times: int
    sequences: int
    tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None
    decode: bool
    cached_elements: int

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key it attends to, in all sequences."""
        live = self.tokens if self.window is None else min(self.tokens, self.window)
        if self.decode:
            return self.sequences * live
        return self.sequences * (live * (live + 1) // 2 + (self.tokens - live) * live)

    @property
    def operations(self) -> float:
        """Operations of the products with keys and with values, 2 per element."""
        return 2.0 * self.pairs * self.q_heads * (self.head_dim + self.v_head_dim)

    @property
    def cached(self) -> float:
        """Elements of the KV cache that are read (a decode step) or written (a prefill)."""
        tokens = self.pairs if self.decode else self.sequences * self.tokens
        return float(tokens * self.cached_elements)

    @property
    def activation_bytes(self) -> float:
        """Bytes of queries and output."""
        rows = self.sequences * (1 if self.decode else self.tokens)
        return float(rows * self.q_heads * (self.head_dim + self.v_head_dim) * ACTIVATION_BYTES)


@dataclass(frozen=True, kw_only=True)
class Elementwise:
    """Norms, residuals, rotary embedding, activation function: bound by the activations' bytes.

    Attributes:
        times: number of layers.
        kernels: launches per layer.
        activation_bytes: bytes read and written per layer.
    """

    name: ClassVar[str] = "elementwise"
    operations: ClassVar[float] = 0.0
    weights: ClassVar[float] = 0.0
    cached: ClassVar[float] = 0.0
    times: int
    kernels: int
    activation_bytes: float


Part = Matmul | Attention | Elementwise


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One forward on one GPU.

    Attributes:
        rows: tokens that pass through the projections together.
        parts: GEMMs, attention and elementwise kernels.
        reduced_bytes: bytes of one all-reduce; 0 on one GPU.
        all_reduces: number of all-reduces in one forward.
    """

    rows: int
    parts: tuple[Part, ...]
    reduced_bytes: float
    all_reduces: int

    @property
    def operations(self) -> float:
        """Operations of all parts."""
        return math.fsum(part.times * part.operations for part in self.parts)

    def weight_bytes(self, dtype: str) -> float:
        """Bytes of weights that are read, each as often as a part reads it."""
        return STORED_BYTES[dtype] * math.fsum(part.times * part.weights for part in self.parts)

    def kv_bytes(self, dtype: str) -> float:
        """Bytes of the KV cache that are read (a decode step) or written (a prefill)."""
        return STORED_BYTES[dtype] * math.fsum(part.times * part.cached for part in self.parts)

    @property
    def activation_bytes(self) -> float:
        """Bytes of activations that the parts read and write."""
        return math.fsum(part.times * part.activation_bytes for part in self.parts)


def decode_forward(model: LanguageModel, *, batch: int, context: int, tensor_parallel: int = 1) -> Forward:
    """One decode step: a token of each of `batch` sequences, whose caches hold `context` tokens.

    Raises:
        UsageError: `tensor_parallel` does not divide a size of the model.
    """
    attention = _attentions(model, batch, context, tensor_parallel, decode=True)
    return _forward(model, batch, attention, batch, tensor_parallel)


def prefill_forward(
    model: LanguageModel, *, sequences: int, prompt: int, rows: int, tensor_parallel: int = 1
) -> Forward:
    """A prefill of `sequences` prompts, in forwards of `rows` tokens; attention is that of all prompts.

    Logits are computed for one row a prompt: engines need those of the last position only.

    Raises:
        UsageError: `tensor_parallel` does not divide a size of the model.
    """
    attention = _attentions(model, sequences, prompt, tensor_parallel, decode=False)
    return _forward(model, rows, attention, sequences, tensor_parallel)


def _forward(
    model: LanguageModel,
    rows: int,
    attention: tuple[Attention, ...],
    head_rows: int,
    tensor_parallel: int,
) -> Forward:
    _require_split(model, tensor_parallel)
    parts: tuple[Part, ...] = (
        *_projections(model, rows, tensor_parallel),
        *attention,
        _elementwise(model, rows, tensor_parallel),
        _matmul(model.lm_head, 1, head_rows, tensor_parallel),
    )
    alone = tensor_parallel == 1
    return Forward(
        rows=rows,
        parts=parts,
        reduced_bytes=0.0 if alone else float(rows * model.hidden_size * ACTIVATION_BYTES),
        all_reduces=0 if alone else 2 * model.layers,
    )


def _projections(model: LanguageModel, rows: int, tensor_parallel: int) -> Iterator[Matmul]:
    for projection in model.attention_projections:
        if projection.name == "qkv":
            heads = model.q_heads // tensor_parallel + 2 * _kv_heads(model, tensor_parallel)
            share = Projection(name="qkv", in_features=model.hidden_size, out_features=heads * model.head_dim)
            yield _matmul(share, model.layers, rows, 1)
        else:
            yield _matmul(projection, model.layers, rows, tensor_parallel)
    for projection in model.mlp_projections if model.dense_layers else ():
        yield _matmul(projection, model.dense_layers, rows, tensor_parallel)
    experts, with_experts = model.experts, model.layers - model.dense_layers
    if experts is None or not with_experts:
        return
    router = Projection(name="router", in_features=model.hidden_size, out_features=experts.count)
    yield _matmul(router, with_experts, rows, tensor_parallel)
    distinct = experts.expected_distinct(rows)
    for projection in model.expert_projections:
        one = _matmul(projection, with_experts, rows * experts.per_token / distinct, tensor_parallel)
        out_features = one.out_features * distinct
        yield replace(one, name=f"experts {one.name}", out_features=out_features, groups=distinct)
        if experts.shared:
            shared = _matmul(projection, with_experts, rows, tensor_parallel)
            out_features = shared.out_features * experts.shared
            yield replace(shared, name=f"shared {shared.name}", out_features=out_features)


def _kv_heads(model: LanguageModel, tensor_parallel: int) -> int:
    """KV heads on one GPU; with more GPUs than KV heads, GPUs hold copies."""
    return max(1, model.kv_heads // tensor_parallel)


def _matmul(projection: Projection, times: int, rows: float, tensor_parallel: int) -> Matmul:
    """A GPU's share of a projection; every GPU computes a replicated one in full."""
    split_in = tensor_parallel if projection.name in _ROW_PARALLEL else 1
    split_out = 1 if projection.name in (*_ROW_PARALLEL, *_REPLICATED) else tensor_parallel
    return Matmul(
        name=projection.name,
        times=times,
        rows=float(rows),
        in_features=projection.in_features // split_in,
        out_features=math.ceil(projection.out_features / split_out),
    )


def _attentions(
    model: LanguageModel, sequences: int, tokens: int, tensor_parallel: int, *, decode: bool
) -> tuple[Attention, ...]:
    latent = model.latent
    if latent is None:
        kv_heads, key, value = _kv_heads(model, tensor_parallel), model.head_dim, model.head_dim
        cached = 2 * kv_heads * model.head_dim
    elif decode:  # queries attend to the latent, which all heads share (multi-head latent attention)
        kv_heads, key, value = 1, latent.cached_elements, latent.kv_rank
        cached = latent.cached_elements
    else:
        kv_heads = model.q_heads // tensor_parallel
        key, value = latent.nope_head_dim + latent.rope_head_dim, latent.v_head_dim
        cached = latent.cached_elements
    kinds = (
        ("attention", model.layers - model.window_layers, None),
        ("attention (window)", model.window_layers, model.window),
    )
    return tuple(
        Attention(
            name=name,
            times=layers,
            sequences=sequences,
            tokens=tokens,
            q_heads=model.q_heads // tensor_parallel,
            kv_heads=kv_heads,
            head_dim=key,
            v_head_dim=value,
            window=window,
            decode=decode,
            cached_elements=cached,
        )
        for name, layers, window in kinds
        if layers
    )


def _elementwise(model: LanguageModel, rows: int, tensor_parallel: int) -> Elementwise:
    """Four kernels a layer, as engines fuse them, counted in elements read and written per token.

    Two residual additions with the norm after them (each reads and writes 2 x hidden size), the rotary
    embedding with the write to the cache (reads and writes queries, keys and values), and the gated
    activation (reads 2 and writes 1 x the MLP's intermediate size; for experts that of a token's own).
    """
    heads, latent = model.q_heads // tensor_parallel, model.latent
    if latent is None:
        qkv = (heads + 2 * _kv_heads(model, tensor_parallel)) * model.head_dim
    else:
        qkv = heads * (latent.nope_head_dim + latent.rope_head_dim) + latent.cached_elements
    dense = model.dense_layers * (model.intermediate_size or 0)
    inside = dense / model.layers
    if model.experts is not None:
        routed = (model.experts.per_token + model.experts.shared) * model.experts.intermediate_size
        inside += routed * (model.layers - model.dense_layers) / model.layers
    elements = 8 * model.hidden_size + 2 * qkv + 3 * inside / tensor_parallel
    activation_bytes = rows * elements * ACTIVATION_BYTES
    return Elementwise(times=model.layers, kernels=4, activation_bytes=activation_bytes)


def _require_split(model: LanguageModel, tensor_parallel: int) -> None:
    """Check that `tensor_parallel` divides the heads and the MLPs.

    Raises:
        UsageError: it does not; names `--tensor-parallel` and the size.
    """
    sizes = {"q_heads": model.q_heads, "intermediate_size": model.intermediate_size}
    if model.experts is not None:
        sizes["experts.intermediate_size"] = model.experts.intermediate_size
    for name, size in sizes.items():
        if size is not None and size % tensor_parallel:
            raise UsageError(
                f"--tensor-parallel: {tensor_parallel} does not divide {name} of {model.name}, {size}"
            )
    if model.latent is None and model.kv_heads % tensor_parallel and tensor_parallel % model.kv_heads:
        raise UsageError(
            f"--tensor-parallel: {tensor_parallel} neither divides kv_heads of {model.name}, "
            f"{model.kv_heads}, nor is a multiple of them"
        )


def cache_bytes_per_sequence(
    model: LanguageModel, *, context: int, dtype: str, tensor_parallel: int = 1
) -> float:
    """Bytes of one sequence's KV cache on one GPU; a layer with a sliding window keeps only its tokens."""
    forward = _attentions(model, 1, context, tensor_parallel, decode=True)
    return STORED_BYTES[dtype] * math.fsum(part.times * part.cached for part in forward)


def resident_weight_bytes(model: LanguageModel, *, dtype: str, tensor_parallel: int = 1) -> float:
    """Bytes of all weights on one GPU, embedding and every expert included.

    Raises:
        UsageError: `tensor_parallel` does not divide a size of the model.
    """
    _require_split(model, tensor_parallel)
    parts = [part for part in _projections(model, 1, tensor_parallel) if not part.name.startswith("experts")]
    weights = math.fsum(part.times * part.weights for part in parts)
    if model.experts is not None:
        expert = sum(_matmul(p, 1, 1, tensor_parallel).weights for p in model.expert_projections)
        weights += (model.layers - model.dense_layers) * model.experts.count * expert
    embeddings = 1 if model.tied_embeddings else 2
    weights += embeddings * _matmul(model.lm_head, 1, 1, tensor_parallel).weights
    weights += (2 * model.layers + 1) * model.hidden_size  # norms
    return STORED_BYTES[dtype] * weights
