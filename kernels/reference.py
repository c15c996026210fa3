"""Float64 oracles of the kernels, in plain PyTorch.

Written for plainness, not speed: one sequence and one key-value head at a time, so that only
what that one needs is held in float64. Inputs may be of any floating dtype, float8 included.
"""

from __future__ import annotations

import math

import torch


def prefill_matmul(
    x: torch.Tensor, weight: torch.Tensor, *, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Product x @ weight.T + bias in float64.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features].
        bias: [out_features], or none.

    Returns:
        [..., out_features], float64.
    """
    product = _float64(x) @ _float64(weight).T
    return product if bias is None else product + _float64(bias)


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one query token a sequence over the live part of its cache, in float64.

    Args:
        q: [batch, q_heads, head_dim].
        k_cache: [batch, capacity, kv_heads, head_dim]; with `block_table`
            [pages, page_size, kv_heads, head_dim].
        v_cache: as `k_cache`.
        context_lens: [batch], integers; clamped to 0..capacity. Cache past them is never read.
        block_table: [batch, max_pages], integers: the pages of each sequence, in order.
        scale: multiplies the scores; 1 / sqrt(head_dim) when none.

    Returns:
        Output [batch, q_heads, head_dim] and log-sum-exp of the scaled scores (natural log)
        [batch, q_heads], both float64. A sequence of length 0 gives output 0 and -inf.
    """
    batch, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    output = torch.zeros(batch, q_heads, head_dim, dtype=torch.float64, device=q.device)
    lse = torch.full((batch, q_heads), -math.inf, dtype=torch.float64, device=q.device)
    for sequence, wanted in enumerate(context_lens.tolist()):
        length = min(max(wanted, 0), capacity)
        if length == 0:
            continue
        pages = None if block_table is None else block_table[sequence]
        queries = _float64(q[sequence]).view(kv_heads, q_heads // kv_heads, head_dim)
        for head in range(kv_heads):
            keys = _float64(_live(k_cache, sequence, head, length, pages))
            scores = queries[head] @ keys.T * scale  # [group, length]
            probabilities, head_lse = _softmax(scores)
            values = _float64(_live(v_cache, sequence, head, length, pages))
            group = slice(head * queries.shape[1], (head + 1) * queries.shape[1])
            output[sequence, group] = probabilities @ values
            lse[sequence, group] = head_lse
    return output, lse


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of a whole prompt, in float64.

    Args:
        q: [batch, q_heads, tokens, head_dim].
        k: [batch, kv_heads, tokens, head_dim].
        v: as `k`.
        scale: multiplies the scores; 1 / sqrt(head_dim) when none.
        rows: int64 [rows], the query positions to compute; all when none.

    Returns:
        [batch, q_heads, rows, head_dim], float64.
    """
    batch, q_heads, tokens, head_dim = q.shape
    kv_heads = k.shape[1]
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    rows = torch.arange(tokens, device=q.device) if rows is None else rows.to(q.device)
    ahead = torch.arange(tokens, device=q.device) > rows[:, None]  # [rows, tokens]
    output = torch.empty(batch, q_heads, len(rows), head_dim, dtype=torch.float64, device=q.device)
    for sequence in range(batch):
        for head in range(q_heads):
            kv_head = head // (q_heads // kv_heads)
            scores = _float64(q[sequence, head, rows]) @ _float64(k[sequence, kv_head]).T * scale
            probabilities, _ = _softmax(scores.masked_fill(ahead, -math.inf))
            output[sequence, head] = probabilities @ _float64(v[sequence, kv_head])
    return output


def _live(
    cache: torch.Tensor, sequence: int, head: int, length: int, pages: torch.Tensor | None
) -> torch.Tensor:
    """The first `length` tokens of one sequence and key-value head: [length, head_dim]."""
    if pages is None:
        return cache[sequence, :length, head]
    page_size = cache.shape[1]
    used = pages[: -(-length // page_size)].tolist()
    # Only live slots are touched: the last page's unused tail is never read.
    parts = [cache[page, : min(page_size, length - at * page_size), head] for at, page in enumerate(used)]
    return torch.cat([_widened(part) for part in parts])


def _softmax(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and log-sum-exp along the last dimension; a row of -inf gives 0 and -inf."""
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse)[..., None]), lse


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Float8 as float32, exactly: PyTorch lacks most operations of float8."""
    return x.to(torch.float32) if x.element_size() == 1 else x


def _float64(x: torch.Tensor) -> torch.Tensor:
    return _widened(x).to(torch.float64)
