"""A decoder in PyTorch around matmul and attention that are passed in; used for one layer and for all.

Pre-norm layers with a gated MLP (SiLU), rotary embedding and optional norms of queries and keys, as in Llama,
Mistral and Qwen3. Rotary pairs are (i, i + head_dim / 2), as in Hugging Face's implementation.

A forward is a generator: each step of it computes a section of one part of TOKEN_PARTS and yields the part's
name, so that a caller can time the parts inside a forward; what it returns is its output.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from ..core.gate import tolerance
from ..core.timed_model import TimedModel

Forward = Generator[str, None, Tensor]
"""Yields the part that it computed; returns its output."""

LAYER_ROUNDINGS = 4
"""Roundings to the storage dtype between a layer's input and output. There are 14 in sequence (norm, QKV, two
rotary products and their sum, probabilities, attention, O, residual; norm, gate+up, SiLU, product, down,
residual); their errors are independent and add as a square root: sqrt(14) < 4."""

Matmul = Callable[[str, Tensor, Tensor], Tensor]
"""Takes a projection's name, x [rows, in_features] and weight [out_features, in_features]; x @ weight.T."""


class Cache(Protocol):
    """The KV cache of a layer, and attention over it."""

    def store(self, k: Tensor, v: Tensor) -> None:
        """Write new keys and values, each [sequences, kv_heads, tokens, head_dim]."""

    def attend(self, q: Tensor) -> Tensor:
        """Attention of q [sequences, q_heads, tokens, head_dim]; [sequences, tokens, q_heads, head_dim]."""


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Weights by projection [out_features, in_features], norms [2, hidden_size], of heads [2, head_dim]."""

    projections: Mapping[str, Tensor]
    norms: Tensor
    head_norms: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """Embedding and LM head, each [vocab_size, hidden_size], one tensor if tied; last norm [hidden_size]."""

    embedding: Tensor
    layers: Sequence[LayerWeights]
    norm: Tensor
    lm_head: Tensor


def completed(forward: Forward) -> Tensor:
    """The output of a forward that is run to its end."""
    while True:
        try:
            next(forward)
        except StopIteration as end:
            output: Tensor = end.value
            return output


def rotary_tables(model: TimedModel, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary embedding, each [positions, head_dim]."""
    frequencies = torch.tensor(model.rotary.frequencies(model.head_dim), device=positions.device)
    angles = positions[:, None].float() * frequencies.repeat(2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def plain_matmul(_name: str, x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's product x @ weight.T."""
    return linear(x, weight)


def row_parallel_matmul(reduce: Callable[[Tensor], Tensor]) -> Matmul:
    """PyTorch's product on one rank's share of the weights: it has a part of the rows that enter O and down.

    Args:
        reduce: adds the outputs [rows, out_features] of these two up over the ranks.
    """

    def matmul(name: str, x: Tensor, weight: Tensor) -> Tensor:
        out = linear(x, weight)
        return reduce(out) if name in ("o", "down") else out

    return matmul


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x [sequences, heads, tokens, head_dim] by cosines and sines [tokens, head_dim]."""
    (cos, sin), (first, second) = rotary, x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def decoder_layer(
    hidden: Tensor,
    weights: LayerWeights,
    cache: Cache,
    *,
    model: TimedModel,
    rotary: tuple[Tensor, Tensor],
    rows: int,
    matmul: Matmul = plain_matmul,
) -> Forward:
    """One layer.

    Args:
        hidden: [sequences, tokens, hidden_size].
        weights: of this layer.
        cache: of this layer.
        model: head counts and epsilon; its number of layers does not matter.
        rotary: cosines and sines [tokens, head_dim].
        rows: most rows of a product.
        matmul: computes the projections.

    Returns:
        The hidden states after the layer, of the shape of `hidden`.
    """
    sequences, tokens, width = hidden.shape
    forwards = torch.split(hidden.flatten(0, 1), rows)
    projections, eps = weights.projections, model.rms_norm_eps
    pieces = []
    for x in forwards:
        normed = rms_norm(x, (width,), weights.norms[0], eps)
        yield "rest"
        pieces.append(matmul("qkv", normed, projections["qkv"]))
        yield "projections"
    heads = _joined(pieces).reshape(sequences, tokens, -1, model.head_dim).transpose(1, 2)
    q, k, v = torch.split(heads, [model.q_heads, model.kv_heads, model.kv_heads], dim=1)
    if weights.head_norms is not None:
        of_q, of_k = weights.head_norms
        q, k = rms_norm(q, of_q.shape, of_q, eps), rms_norm(k, of_k.shape, of_k, eps)
    cache.store(rotate(k, rotary), v)
    q = rotate(q, rotary)
    yield "rest"
    attended = cache.attend(q).reshape(sequences * tokens, -1)
    yield "attention"
    outs = []
    for x, mixed in zip(forwards, torch.split(attended, rows), strict=True):
        projected = matmul("o", mixed, projections["o"])
        yield "projections"
        residual = x + projected
        normed = rms_norm(residual, (width,), weights.norms[1], eps)
        yield "rest"
        gate, up = matmul("gate_up", normed, projections["gate_up"]).chunk(2, -1)
        yield "projections"
        inner = silu(gate) * up
        yield "rest"
        projected = matmul("down", inner, projections["down"])
        yield "projections"
        outs.append(residual + projected)
    yield "rest"
    return _joined(outs).view_as(hidden)


def decoder(
    token_ids: Tensor,
    weights: DecoderWeights,
    caches: Sequence[Cache],
    *,
    model: TimedModel,
    rotary: tuple[Tensor, Tensor],
    rows: int,
    matmul: Matmul = plain_matmul,
) -> Forward:
    """All layers of the weights, and the logits of the last token of each sequence.

    Args:
        token_ids: int64 [sequences, tokens].
        weights: of all layers.
        caches: one for each layer.
        model: as in `decoder_layer`.
        rotary: as in `decoder_layer`.
        rows: as in `decoder_layer`.
        matmul: as in `decoder_layer`.

    Returns:
        Logits [sequences, vocab_size].
    """
    hidden = weights.embedding[token_ids]
    yield "rest"
    for layer, cache in zip(weights.layers, caches, strict=True):
        hidden = yield from decoder_layer(
            hidden, layer, cache, model=model, rotary=rotary, rows=rows, matmul=matmul
        )
    final = rms_norm(hidden[:, -1], weights.norm.shape, weights.norm, model.rms_norm_eps)
    yield "rest"
    logits = matmul("lm_head", final, weights.lm_head)
    yield "lm_head"
    return logits


def agreement(model: TimedModel, *, layers: int, tokens: int, dtype: torch.dtype) -> float:
    """Bound on the relative L2 error of a row of logits between two forwards, both rounded to `dtype`.

    The roundings of a layer (see `LAYER_ROUNDINGS`), of all layers and of both forwards are independent, so
    they add as square roots.
    """
    longest = max(tokens, model.hidden_size, model.intermediate_size or 0)
    both = math.sqrt(2 * layers)
    return tolerance(dtype, reduction=2 * layers * longest, roundings=LAYER_ROUNDINGS * both)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
