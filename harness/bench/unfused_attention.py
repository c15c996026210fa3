"""Attention in plain PyTorch as two matrix products and a softmax, for what PyTorch's fused attention lacks.

It takes softcaps, attention sinks, and values of another size than keys, a part of each key (MLA) among them.
Only the tokens in a window are read.
"""

import math

import torch
from torch import Tensor

from ..core.inputs import DecodeAttentionInputs, PrefillAttentionInputs

QUERY_TOKENS = 128
"""Query tokens of a prompt that are computed at once: the scores of a block of them are held in memory."""


def decode(inputs: DecodeAttentionInputs) -> Tensor:
    """softmax(q @ k.T) @ v as a batch of (sequence, KV head) pairs; contexts must have one length.

    It takes keys and values in any order of tokens and elements.
    """
    k, v = (cache.transpose(1, 2).flatten(0, 1) for cache in in_window(inputs))
    q = inputs.q.view(len(k), -1, inputs.q.shape[-1])
    sinks = None if inputs.sinks is None else _of_pairs(inputs.sinks, len(k), q.shape[1])
    probabilities = _probabilities(q, k, softcap=inputs.softcap, sinks=sinks)
    torch.bmm(probabilities, v, out=inputs.out.view(len(k), -1, v.shape[-1]))
    return inputs.out


def in_window(inputs: DecodeAttentionInputs) -> tuple[Tensor, Tensor]:
    """Keys and values of the tokens that are attended to, with contexts of one length."""
    first = 0 if inputs.window is None else max(0, inputs.k_cache.shape[1] - inputs.window)
    return inputs.k_cache[:, first:], inputs.v_cache[:, first:]


def prefill(inputs: PrefillAttentionInputs) -> Tensor:
    """Causal attention in blocks of query tokens, each over the keys that it sees."""
    q, k, v = inputs.q, inputs.k.flatten(0, 1), inputs.v.flatten(0, 1)
    (sequences, q_heads, prompt, head_dim), pairs = q.shape, len(k)
    group = sequences * q_heads // pairs
    out = q.new_empty(sequences, q_heads, prompt, v.shape[-1])
    window = prompt if inputs.window is None else inputs.window
    for start in range(0, prompt, QUERY_TOKENS):
        end = min(start + QUERY_TOKENS, prompt)
        first = max(0, start + 1 - window)
        rows = q[:, :, start:end].reshape(pairs, -1, head_dim)  # [pairs, group x tokens, head_dim]
        ages = torch.arange(start, end, device=q.device)[:, None] - torch.arange(first, end, device=q.device)
        hidden = ((ages < 0) | (ages >= window)).repeat(group, 1)
        sinks = None
        if inputs.sinks is not None:
            sinks = _of_pairs(inputs.sinks.repeat_interleave(end - start), pairs, rows.shape[1])
        probabilities = _probabilities(
            rows, k[:, first:end], softcap=inputs.softcap, sinks=sinks, hidden=hidden
        )
        block = torch.bmm(probabilities, v[:, first:end])
        out[:, :, start:end] = block.view(sequences, q_heads, end - start, -1)
    return out


def _of_pairs(sinks: Tensor, pairs: int, rows: int) -> Tensor:
    """The sinks of each row of all pairs, [pairs, rows, 1]."""
    heads = sinks.view(-1, rows, 1)
    return heads.repeat(pairs // len(heads), 1, 1)


def _probabilities(
    q: Tensor, k: Tensor, *, softcap: float | None, sinks: Tensor | None, hidden: Tensor | None = None
) -> Tensor:
    """Probabilities [pairs, rows, tokens] of q [pairs, rows, head_dim] over k [pairs, tokens, head_dim].

    `hidden` [rows, tokens] are the tokens that a row does not see; sinks are [pairs, rows, 1].
    """
    scores = q.new_empty(len(q), q.shape[1], k.shape[1])
    # Scaled before it is rounded.
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5, out=scores)
    if softcap is not None:
        scores = (scores / softcap).tanh_().mul_(softcap)
    if hidden is not None:
        scores.masked_fill_(hidden, -math.inf)
    if sinks is None:
        return scores.softmax(-1)
    return torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
