"""A decoder layer in PyTorch, so that norms, rotary embedding and activations are measured too.

Pre-norm with a gated MLP (SiLU) and rotary embedding, as in Llama, Qwen and Mistral. Rotary pairs are
(i, i + head_dim / 2), as in Hugging Face's implementation.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from ..core.cases import DecoderLayer
from ..core.gate import Gate, sampled_tokens, tolerance
from ..core.inputs import DTYPES, DecoderLayerInputs

ROUNDINGS = 4
"""Roundings to the storage dtype between a layer's input and output. There are 14 in sequence (norm, QKV, two
rotary products and their sum, probabilities, attention, O, residual; norm, gate+up, SiLU, product, down,
residual); their errors are independent and add as a square root: sqrt(14) < 4."""


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [sequences, heads, tokens, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def decoder_layer(inputs: DecoderLayerInputs) -> Tensor:
    """The layer's output, of the shape of its hidden states; writes the new keys and values to the caches."""
    case, model, weights = inputs.case, inputs.case.model, inputs.weights
    width = (model.hidden_size,)
    rows = inputs.hidden.flatten(0, 1)
    forwards = torch.split(rows, case.rows)
    qkv = torch.cat([linear(rms_norm(x, width, inputs.norms[0], 1e-5), weights["qkv"]) for x in forwards])
    heads = qkv.view(case.sequences, case.query_tokens, -1, model.head_dim).transpose(1, 2)
    q, k, v = torch.split(heads, [model.q_heads, model.kv_heads, model.kv_heads], dim=1)
    inputs.k_cache[:, :, -case.query_tokens :] = _rotate(k, inputs.cos, inputs.sin)
    inputs.v_cache[:, :, -case.query_tokens :] = v
    q = _rotate(q, inputs.cos, inputs.sin)
    if case.phase == "prefill":
        attended = scaled_dot_product_attention(
            q, inputs.k_cache, inputs.v_cache, is_causal=True, enable_gqa=True
        ).transpose(1, 2)
    else:
        grouped = q.reshape(case.sequences, model.kv_heads, model.group, model.head_dim)
        attended = scaled_dot_product_attention(grouped, inputs.k_cache, inputs.v_cache)
    outs = []
    for x, mixed in zip(forwards, torch.split(attended.reshape(len(rows), -1), case.rows), strict=True):
        residual = x + linear(mixed, weights["o"])
        gate, up = linear(rms_norm(residual, width, inputs.norms[1], 1e-5), weights["gate_up"]).chunk(2, -1)
        outs.append(residual + linear(silu(gate) * up, weights["down"]))
    return torch.cat(outs).view_as(inputs.hidden)


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
    weights = {name: weight.double() for name, weight in inputs.weights.items()}
    norms, old = inputs.norms.double(), case.tokens - case.query_tokens
    turn = torch.complex(*(t.double()[:, : model.head_dim // 2] for t in (inputs.cos, inputs.sin)))

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turned(x: Tensor, turns: Tensor) -> Tensor:  # [tokens, heads, head_dim]
        product = torch.complex(*x.chunk(2, dim=-1)) * turns[:, None]
        return torch.cat((product.real, product.imag), dim=-1)

    outs = []
    for sequence, hidden in enumerate(inputs.hidden.double()):
        q_rows, kv_rows = torch.split(
            weights["qkv"], [model.q_heads * model.head_dim, 2 * model.kv_heads * model.head_dim]
        )
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
        residual = hidden[tokens] + attended.flatten(1) @ weights["o"].T
        gate, up = (normed(residual, norms[1]) @ weights["gate_up"].T).chunk(2, -1)
        outs.append(residual + (gate / (1 + (-gate).exp()) * up) @ weights["down"].T)
    return torch.stack(outs)


def gate_of(case: DecoderLayer, inputs: DecoderLayerInputs) -> Gate:
    """The gate of the layer: every sequence, at the sampled query tokens."""
    tokens = sampled_tokens(case.query_tokens, inputs.hidden.device)
    longest = max(case.tokens, case.model.hidden_size, case.model.intermediate_size or 0)
    return Gate(
        select=lambda out: out[:, tokens],
        expected=oracle(inputs, tokens),
        bound=tolerance(DTYPES[case.dtype], reduction=longest, roundings=ROUNDINGS),
    )
