"""Memory of a deployment: weights and caches on the busiest GPU, and the sequences that fit."""

import math
from collections import Counter

from ..core.formats import BF16, Format
from ..core.language_model import LanguageModel
from ..core.layers import Attention, Experts, GroupedQueryAttention, LinearAttention
from ..core.parallelism import ONE_GPU, Parallelism, attention_share
from ..core.stored_weights import stored_weights
from .forward import head_projection, layer_projections, lm_head_format, routed_experts


def cache_bytes_per_sequence(
    model: LanguageModel, *, context: int, cache_format: Format = BF16, parallelism: Parallelism = ONE_GPU
) -> float:
    """Bytes that one sequence takes on a GPU of its attention replica: its KV cache and its states.

    A layer with a sliding window keeps only its tokens, one with chunks only a chunk. An indexer selects what
    is read, and not what is kept. A pipeline's stage has its share of the layers.
    """
    total = 0.0
    for group in model.layer_groups:
        if group.attention is not None:
            share = attention_share(group.attention, parallelism.tensor_parallel)
            total += group.count * _sequence_bytes(share, context, cache_format)
    return total / parallelism.pipeline_parallel


def _sequence_bytes(attention: Attention, context: int, cache_format: Format) -> float:
    if isinstance(attention, LinearAttention):
        return float(attention.state_elements * attention.state_bytes)
    window = attention.window if isinstance(attention, GroupedQueryAttention) else None
    kept = context if window is None else min(context, window)
    return kept * attention.cached_elements * cache_format.bytes_per_element


def resident_weight_bytes(model: LanguageModel, *, parallelism: Parallelism = ONE_GPU) -> float:
    """Bytes of all weights on one GPU, embedding and every expert included.

    A stage of a pipeline has its share of the layers' bytes, also where their number does not divide; the
    first has the embedding and the last lm_head, of which the larger counts.

    Raises:
        UsageError: the GPUs cannot share the model's heads.
    """
    layers = 0.0
    for group in model.layer_groups:
        each = group.replicated_parameters * BF16.bytes_per_element + math.fsum(
            projection.parameters * group.formats.of(projection.role, projection.name).bytes_per_element
            for projection in layer_projections(group, model.hidden_size, parallelism)
        )
        if isinstance(group.mlp, Experts):
            experts = routed_experts(model, group, parallelism, tokens=1)
            each += experts.local_experts * experts.parameters * group.formats.experts.bytes_per_element
        layers += group.count * each
    head = head_projection(model, parallelism)
    embedding = head.parameters * model.formats.embedding.bytes_per_element
    lm_head = 0.0 if model.tied_embeddings else head.parameters * lm_head_format(model).bytes_per_element
    stages = parallelism.pipeline_parallel
    outside = embedding + lm_head if stages == 1 else max(embedding, lm_head)
    return layers / stages + outside + model.other_parameters * BF16.bytes_per_element


def weight_formats(model: LanguageModel) -> str:
    """Names of the formats of the layers' weights, that of the most weights first: "mxfp4 and bf16"."""
    weights: Counter[str] = Counter()
    for each in stored_weights(model):
        if each.part not in ("embedding", "lm_head"):
            weights[each.format.name] += each.parameters
    # A router is small, and every engine keeps it apart.
    total = weights.total()
    return " and ".join(name for name, count in weights.most_common() if count > total / 100)
