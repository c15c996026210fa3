"""The one-layer case: a decoder layer, so that norms, rotary embedding and activations are measured too."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..core.cases import DecoderLayer
from ..core.gate import Gate, sampled_tokens, sum_roundings, tolerance
from ..core.inputs import DTYPES, DecoderLayerInputs
from . import decoder
from .decoder import LAYER_ROUNDINGS, LayerWeights, completed, plain_matmul, row_parallel_matmul


@dataclass(frozen=True)
class _Cache:
    """The KV cache of the inputs, whose last tokens are the new ones."""

    inputs: DecoderLayerInputs

    def store(self, k: Tensor, v: Tensor) -> None:
        new = self.inputs.case.query_tokens
        self.inputs.k_cache[:, :, -new:] = k
        self.inputs.v_cache[:, :, -new:] = v

    def attend(self, q: Tensor) -> Tensor:
        k, v = self.inputs.k_cache, self.inputs.v_cache
        if self.inputs.case.phase == "prefill":
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
        return scaled_dot_product_attention(grouped, k, v).view_as(q).transpose(1, 2)


def decoder_layer(inputs: DecoderLayerInputs, *, reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The layer's output, of the shape of its hidden states; writes the new keys and values to the caches.

    Args:
        inputs: of the layer, or one rank's share of its heads, weights and caches.
        reduce: adds outputs of O and down up over the ranks; None where all is on one.
    """
    return completed(
        decoder.decoder_layer(
            inputs.hidden,
            LayerWeights(projections=inputs.weights, norms=inputs.norms),
            _Cache(inputs),
            model=inputs.case.model,
            rotary=(inputs.cos, inputs.sin),
            rows=inputs.case.rows,
            matmul=plain_matmul if reduce is None else row_parallel_matmul(reduce),
        )
    )


def oracle(inputs: DecoderLayerInputs, tokens: Tensor) -> Tensor:
    """The layer's output in float64 at some of the new tokens, one token at a time.

    Shares no code with `decoder_layer`: it rotates complex numbers and slices the keys of each query.

    Args:
        inputs: of the layer, before or after it ran: the cache's new entries are computed, not read.
        tokens: int64 [n], positions among the query tokens.

    Returns:
        float64 [sequences, n, hidden_size].
    """
    case, model = inputs.case, inputs.case.model
    weights = inputs.weights  # each is converted where it is used: all at once take much memory
    norms, old = inputs.norms.double(), case.tokens - case.query_tokens
    turn = torch.complex(*(t.double()[:, : model.head_dim // 2] for t in (inputs.cos, inputs.sin)))

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + model.rms_norm_eps).sqrt() * weight

    def turned(x: Tensor, turns: Tensor) -> Tensor:  # [tokens, heads, head_dim]
        product = torch.complex(*x.chunk(2, dim=-1)) * turns[:, None]
        return torch.cat((product.real, product.imag), dim=-1)

    attention = []
    qkv = weights["qkv"].double()
    q_rows, kv_rows = torch.split(qkv, [model.q_heads * model.head_dim, 2 * model.kv_heads * model.head_dim])
    for sequence, hidden in enumerate(inputs.hidden.double()):
        normal = normed(hidden, norms[0])
        k_new, v_new = (
            (normal @ kv_rows.T).view(case.query_tokens, 2, model.kv_heads, model.head_dim).unbind(1)
        )
        k, v = (
            torch.cat((cache[sequence, :, :old].double().transpose(0, 1), new))
            for cache, new in ((inputs.k_cache, turned(k_new, turn)), (inputs.v_cache, v_new))
        )
        q = turned((normal[tokens] @ q_rows.T).view(-1, model.q_heads, model.head_dim), turn[tokens])
        attended = torch.empty_like(q)
        for row, token in enumerate(tokens.tolist()):
            seen = old + token + 1
            groups = q[row].view(model.kv_heads, model.group, model.head_dim)
            scores = torch.einsum("hgd,thd->hgt", groups, k[:seen]) * model.head_dim**-0.5
            values = torch.einsum("hgt,thd->hgd", scores.softmax(-1), v[:seen])
            attended[row] = values.reshape(model.q_heads, model.head_dim)
        attention.append(attended.flatten(1))
    residual = inputs.hidden[:, tokens].double() + torch.stack(attention) @ weights["o"].double().T
    gate, up = (normed(residual, norms[1]) @ weights["gate_up"].double().T).chunk(2, -1)
    return residual + (gate / (1 + (-gate).exp()) * up) @ weights["down"].double().T


def gate_of(case: DecoderLayer, inputs: DecoderLayerInputs, *, ranks: int = 1) -> Gate:
    """The gate of the layer: every sequence, at the sampled query tokens.

    Args:
        case: the layer.
        inputs: of the whole layer.
        ranks: among which its weights are shared: the two sums over them round as well.
    """
    tokens = sampled_tokens(case.query_tokens, inputs.hidden.device)
    longest = max(case.tokens, case.model.hidden_size, case.model.intermediate_size or 0)
    roundings = math.hypot(LAYER_ROUNDINGS, *[sum_roundings(ranks)] * 2)
    return Gate(
        select=lambda out: out[:, tokens],
        expected=oracle(inputs, tokens),
        bound=tolerance(DTYPES[case.dtype], reduction=longest, roundings=roundings),
    )
