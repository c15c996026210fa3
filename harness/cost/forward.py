"""Operations and bytes of one forward of a language model, part by part, in prefill and in a decode step.

All figures are those of the busiest GPU. A pipeline's stages are counted as one sequence of layers: a token
passes through all of them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import msgspec

from ..core.formats import BF16, Format
from ..core.language_model import LanguageModel
from ..core.layers import (
    Attention as AnyAttention,
)
from ..core.layers import (
    Experts,
    GroupedQueryAttention,
    LatentAttention,
    LayerGroup,
    LinearAttention,
    Mlp,
    Projection,
)
from ..core.parallelism import ONE_GPU, Parallelism, attention_share, reached_ranks
from .attention_parts import AttentionPart, attention_parts
from .parts import ACTIVATION_BYTES, Elementwise, Matmul, RoutedExperts

Part: TypeAlias = Matmul | RoutedExperts | AttentionPart | Elementwise


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Communication between GPUs.

    Attributes:
        kind: an all-reduce adds up the outputs of row-parallel projections; an all-to-all sends tokens to the
            GPUs of their experts and back; a send passes them to the next stage of a pipeline.
        times: number of them in a forward.
        gpus: GPUs that take part.
        moved_bytes: bytes of the tensor that is reduced, or that one GPU sends.
    """

    kind: Literal["all-reduce", "all-to-all", "send"]
    times: int
    gpus: int
    moved_bytes: float


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One forward on one GPU.

    Attributes:
        rows: tokens that pass through the projections of a GPU together.
        parts: GEMMs, experts, attention and elementwise kernels.
        transfers: communication between GPUs; empty on one GPU.
    """

    rows: int
    parts: tuple[Part, ...]
    transfers: tuple[Transfer, ...]

    @property
    def operations(self) -> float:
        """Operations of all parts."""
        return math.fsum(part.times * part.operations for part in self.parts)

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights that are read, each as often as a part reads it."""
        return math.fsum(part.times * part.weight_bytes for part in self.parts)

    @property
    def kv_bytes(self) -> float:
        """Bytes of the KV cache and of states that are read or written."""
        return math.fsum(part.times * part.kv_bytes for part in self.parts)

    @property
    def activation_bytes(self) -> float:
        """Bytes of activations that the parts read and write."""
        return math.fsum(part.times * part.activation_bytes for part in self.parts)


def decode_forward(
    model: LanguageModel,
    *,
    batch: int,
    context: int,
    parallelism: Parallelism = ONE_GPU,
    cache_format: Format = BF16,
) -> Forward:
    """One decode step: a token of each of `batch` sequences, whose caches hold `context` tokens.

    Attention replicas and the micro-batches of a pipeline share the batch; the figures are those of one
    micro-batch.

    Raises:
        UsageError: the GPUs cannot share the model's heads.
    """
    micro = math.ceil(batch / parallelism.pipeline_parallel)
    sequences = math.ceil(micro / parallelism.data_parallel)
    pieces = _Pieces(
        sequences=sequences,
        tokens=context,
        rows=sequences,
        head_rows=sequences,
        routed=micro,
        decode=True,
        parallelism=parallelism,
        cache_format=cache_format,
    )
    return _forward(model, pieces)


def prefill_forward(
    model: LanguageModel,
    *,
    sequences: int,
    prompt: int,
    rows: int,
    replicas: int | None = None,
    parallelism: Parallelism = ONE_GPU,
    cache_format: Format = BF16,
) -> Forward:
    """A prefill of `sequences` prompts on each attention replica, in forwards of `rows` tokens.

    `replicas` of them prefill at the same time, all if None, and share the routed experts. Attention is that
    of all prompts of a replica. Logits are computed for one row a prompt: engines need those of the last
    position only.

    Raises:
        UsageError: the GPUs cannot share the model's heads.
    """
    pieces = _Pieces(
        sequences=sequences,
        tokens=prompt,
        rows=rows,
        head_rows=sequences,
        routed=rows * (replicas or parallelism.data_parallel),
        decode=False,
        parallelism=parallelism,
        cache_format=cache_format,
    )
    return _forward(model, pieces)


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """What passes through a forward on one GPU: see `decode_forward`.

    Attributes:
        sequences: prompts, or sequences with one token each.
        tokens: tokens of a prompt, or cached tokens of a sequence.
        rows: tokens that pass through the projections.
        head_rows: tokens that pass through lm_head.
        routed: tokens of all attention replicas, which pass through the routed experts together.
        decode: whether each sequence has one token.
        parallelism: how GPUs share the model.
        cache_format: how the cache is stored.
    """

    sequences: int
    tokens: int
    rows: int
    head_rows: int
    routed: int
    decode: bool
    parallelism: Parallelism
    cache_format: Format


def _forward(model: LanguageModel, pieces: _Pieces) -> Forward:
    layers = [part for group in model.layer_groups for part in _layer_parts(model, group, pieces)]
    head = head_projection(model, pieces.parallelism)
    parts = (*_merged(layers), _matmul(head, 1, pieces.head_rows, lm_head_format(model)))
    return Forward(rows=pieces.rows, parts=parts, transfers=tuple(_transfers(model, pieces)))


def _layer_parts(model: LanguageModel, group: LayerGroup, pieces: _Pieces) -> Iterator[Part]:
    rows, split = pieces.rows, pieces.parallelism
    for projection in layer_projections(group, model.hidden_size, split):
        weight_format = group.formats.of(projection.role, projection.name)
        yield _matmul(projection, group.count, rows, weight_format)
    if isinstance(group.mlp, Experts):
        yield routed_experts(model, group, split, pieces.routed)
    share = None if group.attention is None else attention_share(group.attention, split.tensor_parallel)
    if share is not None:
        yield from attention_parts(
            share,
            group.count,
            pieces.sequences,
            pieces.tokens,
            decode=pieces.decode,
            cache_format=pieces.cache_format,
        )
    yield _elementwise(model, group, share, pieces)


def layer_projections(group: LayerGroup, hidden_size: int, split: Parallelism) -> Iterator[Projection]:
    """One GPU's share of a layer's projections, routed experts excepted."""
    tensor_parallel = split.tensor_parallel
    if group.attention is not None:
        share = attention_share(group.attention, tensor_parallel)
        yield from share.projections(hidden_size)
        if isinstance(share, LinearAttention) and share.low_rank_parameters:
            yield Projection(
                "low rank", hidden_size, math.ceil(share.low_rank_parameters / hidden_size), "attention"
            )
    if isinstance(group.mlp, Mlp):
        yield from group.mlp.projections(hidden_size, tensor_parallel)
    elif isinstance(group.mlp, Experts):
        yield Projection("router", hidden_size, group.mlp.count, "router")
        if group.mlp.shared is not None:
            for each in group.mlp.shared.projections(hidden_size, tensor_parallel, role="shared"):
                yield replace(each, name=f"shared {each.name}")


def routed_experts(model: LanguageModel, group: LayerGroup, split: Parallelism, tokens: int) -> RoutedExperts:
    """One GPU's share of the routed experts of a group's layers."""
    experts = group.mlp
    if not isinstance(experts, Experts):
        raise TypeError("the group has no experts")
    return RoutedExperts(
        times=group.count,
        tokens=tokens,
        hidden_size=experts.hidden_size or model.hidden_size,
        intermediate_size=experts.expert.intermediate_size,
        gated=experts.expert.gated,
        experts=experts.count,
        experts_per_token=experts.per_token,
        expert_parallel=split.expert_parallel,
        tensor_parallel=split.expert_tensor_parallel,
        weight_format=group.formats.experts,
    )


def head_projection(model: LanguageModel, split: Parallelism) -> Projection:
    """One GPU's share of lm_head."""
    vocabulary = math.ceil(model.vocab_size / split.tensor_parallel)
    return Projection("lm_head", model.hidden_size, vocabulary, "lm_head")


def lm_head_format(model: LanguageModel) -> Format:
    """How the output projection is stored: as the embedding where they are tied."""
    return model.formats.embedding if model.tied_embeddings else model.formats.lm_head


def _matmul(projection: Projection, times: int, rows: float, weight_format: Format) -> Matmul:
    return Matmul(
        name=projection.name,
        times=times,
        rows=float(rows),
        in_features=projection.in_features,
        out_features=projection.out_features,
        weight_format=weight_format,
    )


def _elementwise(
    model: LanguageModel, group: LayerGroup, share: AnyAttention | None, pieces: _Pieces
) -> Elementwise:
    """Kernels of a layer as engines fuse them, counted in elements read and written per token.

    A residual addition with the norm after it reads and writes 2 x hidden size, before attention and before
    the MLP. The rotary embedding with the write to the cache reads and writes queries, keys and values; that
    of grouped-query attention is part of its kernel as measured. The activation function of a gated MLP reads
    2 and writes 1 x its intermediate size; that of routed experts is part of their kernel. Products of 8 or 4
    bits need their input quantised: 2 bytes read and 1 written.
    """
    elements, kernels, quantised, passes = 0.0, 0, 0.0, 0
    for part in (share, group.mlp):
        if part is not None:
            elements, kernels = elements + 4 * model.hidden_size, kernels + 1
    if share is not None and not isinstance(share, GroupedQueryAttention):
        elements, kernels = elements + 2 * _rotated(share), kernels + 1
    inner = _dense_inner(group.mlp, pieces.parallelism.tensor_parallel)
    if inner:
        elements, kernels = elements + inner, kernels + 1
    for projection in layer_projections(group, model.hidden_size, pieces.parallelism):
        if group.formats.of(projection.role, projection.name).multiplied_in != "bf16":
            quantised, passes = quantised + 3 * projection.in_features, passes + 1
    return Elementwise(
        times=group.count,
        kernels=kernels,
        activation_bytes=pieces.rows * elements * ACTIVATION_BYTES,
        quantised_bytes=pieces.rows * quantised,
        quantise_kernels=passes,
    )


def _rotated(share: AnyAttention) -> int:
    """Elements of a token's queries, keys and values on one GPU."""
    if isinstance(share, LinearAttention):
        return share.in_features_out
    if isinstance(share, LatentAttention):
        return share.q_heads * (share.nope_head_dim + share.rope_head_dim) + share.cached_elements
    return share.q_heads * share.head_dim + share.cached_elements


def _dense_inner(mlp: Mlp | Experts | None, tensor_parallel: int) -> float:
    """Elements that the activation function of a dense or shared MLP reads and writes."""
    dense = mlp.shared if isinstance(mlp, Experts) else mlp
    if dense is None:
        return 0.0
    return (3 if dense.gated else 2) * dense.intermediate_size / tensor_parallel


def _transfers(model: LanguageModel, pieces: _Pieces) -> Iterator[Transfer]:
    """Two all-reduces a layer; with attention replicas, experts' tokens travel instead of being reduced."""
    split, row_bytes = pieces.parallelism, model.hidden_size * ACTIVATION_BYTES
    routed = sum(group.count for group in model.layer_groups if isinstance(group.mlp, Experts))
    travelling = routed if split.data_parallel > 1 else 0
    reduced = sum(
        group.count * ((group.attention is not None) + (group.mlp is not None))
        for group in model.layer_groups
    )
    if split.tensor_parallel > 1:
        yield Transfer(
            kind="all-reduce",
            times=reduced - travelling,
            gpus=split.tensor_parallel,
            moved_bytes=float(pieces.rows * row_bytes),
        )
    if travelling:
        yield Transfer(
            kind="all-to-all",
            times=2 * travelling,
            gpus=split.stage_gpus,
            moved_bytes=_sent_rows(model, pieces) * row_bytes,
        )
    if split.pipeline_parallel > 1:
        yield Transfer(
            kind="send",
            times=split.pipeline_parallel - 1,
            gpus=2,
            moved_bytes=pieces.rows * row_bytes / split.tensor_parallel,
        )


def _sent_rows(model: LanguageModel, pieces: _Pieces) -> float:
    """Rows that one GPU sends to others: its share of its replica's tokens, once to each GPU with experts."""
    gpus = pieces.parallelism.stage_gpus
    per_token = max(group.mlp.per_token for group in model.layer_groups if isinstance(group.mlp, Experts))
    reached = reached_ranks(gpus, per_token)
    return pieces.rows / pieces.parallelism.tensor_parallel * reached * (gpus - 1) / gpus


def _merged(parts: list[Part]) -> list[Part]:
    """Equal parts of several groups as one, in the order in which they first occur."""
    times: dict[Part, int] = {}
    for part in parts:
        key = _with_times(part, 0)
        times[key] = times.get(key, 0) + part.times
    return [_with_times(part, count) for part, count in times.items()]


def _with_times(part: Part, times: int) -> Part:
    if isinstance(part, Matmul):
        return msgspec.structs.replace(part, times=times)
    return replace(part, times=times)
