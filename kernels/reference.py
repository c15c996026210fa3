"""Float64 oracles of the kernels, in plain PyTorch.

They are simple rather than fast: one sequence and one key-value head at a time, so that only its data is held
in float64. Inputs may have any floating dtype, float8 included.

This file is over 400 lines because the oracles of all kernels stand together, and share their helpers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

States = torch.Tensor | Sequence[torch.Tensor]


def prefill_matmul(
    x: torch.Tensor,
    weight: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    *,
    bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    activation: str | None = None,
    x_scale: torch.Tensor | float | None = None,
    weight_scale: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | float | None = None,
    gate_up: str = "halves",
    swiglu_alpha: float = 1.0,
    swiglu_beta: float = 0.0,
    swiglu_limit: float | None = None,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
) -> torch.Tensor:
    """Activation of (x @ weight.T, scaled, + bias), + residual, in float64.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features], or [batch, out_features, in_features] with a 3-dimensional x; for
            a gated activation the rows of the gate and as many of the up projection, or a pair of weights.
        bias: [out_features], [batch, out_features], [batch, 1, out_features] or None; a pair beside a pair.
        activation: None, "silu", "gelu" (exact, with erf), "gelu_tanh", "relu", "relu_squared"; gated, that
            of gate times up: "swiglu", "geglu", "geglu_tanh", "reglu", "bilinear".
        x_scale: a number, a tensor of one element, or one scale per row of x; its last dimension may be 1. Or
            one per row and block of in_features: [..., blocks].
        weight_scale: the same for the weight; also [1, out_features], and a pair beside a pair. Its rows may
            be in blocks as well: [..., row blocks, blocks].
        gate_up: "halves": first the gate's rows of one weight, then those of up; or "interleaved".
        swiglu_alpha: "swiglu" is gate sigmoid(alpha gate) (up + beta).
        swiglu_beta: see `swiglu_alpha`.
        swiglu_limit: the largest gate, and the largest size of up.
        residual: broadcasts to the result.
        residual_scale: multiplies the residual; 0 leaves it out.

    Returns:
        [..., out_features], float64; half as many features for one weight of a gated activation.
    """
    if isinstance(weight, tuple):
        of_pair = zip(weight, _pair(bias), _pair(weight_scale), strict=True)
        gate, up = (_linear(x, each, its_bias, x_scale, scale) for each, its_bias, scale in of_pair)
    else:
        assert not isinstance(bias, tuple)  # noqa: S101  (pairs go with pairs)
        assert not isinstance(weight_scale, tuple)  # noqa: S101
        product = _linear(x, weight, bias, x_scale, weight_scale)
        if activation not in _GATES:
            gate, up = product, None
        elif gate_up == "interleaved":
            gate, up = product[..., ::2], product[..., 1::2]
        else:
            gate, up = product.chunk(2, dim=-1)
    if swiglu_limit is not None and up is not None:
        gate, up = gate.clamp(max=swiglu_limit), up.clamp(-swiglu_limit, swiglu_limit)
    activation = _GATES.get(activation, activation)
    if activation == "silu":
        output = gate * torch.sigmoid(swiglu_alpha * gate)
    else:
        output = _ACTIVATIONS[activation](gate)
    if up is not None:
        output = output * (up + swiglu_beta)
    if residual is not None and residual_scale:
        output = output + residual_scale * _float64(residual)
    return output


_GATES: dict[str | None, str | None] = {
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "reglu": "relu",
    "bilinear": None,
}
_ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda product: product,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda product: torch.nn.functional.gelu(product, approximate="tanh"),
    "relu": torch.relu,
    "relu_squared": lambda product: torch.relu(product) ** 2,
}


def _pair(value: Any) -> tuple[Any, Any]:
    """The halves of a value for gate and up: a pair as it is, a tensor of both in two, others twice."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, torch.Tensor) and value.numel() > 1:
        first, second = value.chunk(2, dim=-1 if value.shape[-1] > 1 else -2)
        return first, second
    return value, value


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | float | None,
    weight_scale: torch.Tensor | float | None,
) -> torch.Tensor:
    """(x @ weight.T, scaled, + bias) in float64; blocks are powers of two."""
    scaled_x, scaled_weight = _float64(x), _float64(weight)
    if isinstance(x_scale, torch.Tensor) and _in_blocks(x_scale, x, ((1,),)):
        scaled_x, x_scale = scaled_x * _repeated(_float64(x_scale), x, -1), None
    rows = weight.shape[-2]
    of_one_block = ((rows, 1), (1, rows), (1, 1))
    if isinstance(weight_scale, torch.Tensor) and _in_blocks(weight_scale, weight, of_one_block):
        by_row = _repeated(_float64(weight_scale), weight, -1)
        scaled_weight, weight_scale = scaled_weight * _repeated(by_row, weight, -2), None
    product = scaled_x @ scaled_weight.transpose(-1, -2)
    product = product * _of_rows(x_scale, x) * _of_features(weight_scale, weight)
    return product if bias is None else product + _by_batch(_float64(bias))


def _in_blocks(scale: torch.Tensor, operand: torch.Tensor, without: tuple[tuple[int, ...], ...]) -> bool:
    """Whether scales have a dimension for blocks of K: the last sizes are none of those `without` one."""
    return scale.dim() == operand.dim() and tuple(scale.shape[-len(without[0]) :]) not in without


def _repeated(scale: torch.Tensor, operand: torch.Tensor, dim: int) -> torch.Tensor:
    """Scales per block of a dimension as scales per element."""
    size, elements = 1, operand.shape[dim]
    while -(-elements // size) > scale.shape[dim]:
        size *= 2
    return scale.repeat_interleave(size, dim).narrow(dim, 0, elements)


def _of_rows(scale: torch.Tensor | float | None, x: torch.Tensor) -> torch.Tensor | float:
    """Scales of x in a shape that multiplies a product [..., rows, features]."""
    if not isinstance(scale, torch.Tensor):
        return 1.0 if scale is None else scale
    scale = _float64(scale)
    if scale.numel() == 1:
        return scale.reshape(())
    return scale if scale.dim() == x.dim() else scale[..., None]


def _of_features(scale: torch.Tensor | float | None, weight: torch.Tensor) -> torch.Tensor | float:
    """Scales of the weight in a shape that multiplies a product [(batch,) rows, features]."""
    if not isinstance(scale, torch.Tensor):
        return 1.0 if scale is None else scale
    scale = _float64(scale)
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() > 1 and tuple(scale.shape[-2:]) == (weight.shape[-2], 1):
        scale = scale[..., 0]
    return _by_batch(scale)


def _by_batch(values: torch.Tensor) -> torch.Tensor:
    """[batch, features] as [batch, 1, features]; other shapes as they are."""
    return values[:, None] if values.dim() == 2 and values.shape[0] > 1 else values


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    q_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    scale: torch.Tensor | float | None = None,
    window: int | None = None,
    softcap: torch.Tensor | float | None = None,
    sinks: torch.Tensor | None = None,
    q_scale: torch.Tensor | float | None = None,
    k_scale: torch.Tensor | float | None = None,
    v_scale: torch.Tensor | float | None = None,
    out_scale: torch.Tensor | float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the last query tokens of each sequence over the live part of its cache, in float64.

    Args:
        q: [batch, q_heads, head_dim] or [batch, query_tokens, q_heads, head_dim]; with `cu_seqlens`
            [tokens, q_heads, head_dim].
        k_cache: [batch, capacity, kv_heads, head_dim]; with `block_table`
            [pages, page_size, kv_heads, head_dim].
        v_cache: like `k_cache`, with its own head_dim.
        context_lens: [batch], integers; clamped to 0..capacity. Cache past them is never read. The
            query tokens are the last ones of the sequence; attention among them is causal.
        cu_seqlens: [batch + 1], integers: where the packed query tokens of each sequence begin, and the end
            of the last; tokens after it give output 0 and -inf.
        q_lens: [batch], integers: how many query tokens of each sequence are live, the first ones in `q`;
            the others give output 0 and -inf.
        block_table: [batch, max_pages], integers: the pages of each sequence, in order.
        scale: multiplies the scores; None means 1 / sqrt(head_dim). This and `softcap` may be tensors of one
            element.
        window: sliding window: tokens that a query token attends to, itself the last; None means all.
        softcap: c: scores s become c tanh(s / c).
        sinks: [q_heads]: attention sinks, one more logit per query head, whose value is 0.
        q_scale: number, [], [1], [q_heads], [kv_heads], [batch, kv_heads], or shape of `q` without head_dim:
            multiplies the queries.
        k_scale: number, [], [1], [kv_heads], [batch, kv_heads], or shape of `k_cache` without head_dim:
            multiplies the keys. With one KV head and a `v_cache` that is a view of the first elements of
            `k_cache` also [2]: multiplies these elements, and the rest.
        v_scale: the same for the values; None means the first of a `k_scale` of [2].
        out_scale: number, [] or [1]: divides the output.

    Returns:
        Output, shape of `q` with the head_dim of v_cache, and log-sum-exp of the logits (natural log), shape
        of `q` without head_dim, both float64. A query token that attends to no token gives
        output 0 and -inf.
    """
    q_heads, head_dim = q.shape[-2:]
    kv_heads = k_cache.shape[2]
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    scale = 1.0 / math.sqrt(head_dim) if scale is None else float(scale)
    softcap = None if softcap is None else float(softcap)
    scaled_q = _float64(q) * _of_queries(q_scale, q, kv_heads, cu_seqlens)[..., None]
    of_elements: torch.Tensor | float = 1.0
    if kv_heads == 1 and isinstance(k_scale, torch.Tensor) and k_scale.shape == (2,):
        v_scale = k_scale[:1] if v_scale is None else v_scale
        parts = torch.tensor((v_cache.shape[-1], head_dim - v_cache.shape[-1]), device=q.device)
        of_elements, k_scale = _float64(k_scale).repeat_interleave(parts), None
    output = torch.zeros(*q.shape[:-1], v_cache.shape[-1], dtype=torch.float64, device=q.device)
    lse = torch.full(q.shape[:-1], -math.inf, dtype=torch.float64, device=q.device)
    # [query tokens, q_heads, ...] of each sequence, views.
    queries, outputs, lses = (
        _query_tokens(each, cu_seqlens, q_lens, 2 if each is lse else 3) for each in (scaled_q, output, lse)
    )
    for sequence, context_len in enumerate(context_lens.tolist()):
        length = min(max(context_len, 0), capacity)
        pages = None if block_table is None else block_table[sequence]
        for head in range(kv_heads):
            group = slice(head * (q_heads // kv_heads), (head + 1) * (q_heads // kv_heads))
            for token, query in enumerate(queries[sequence]):
                end = length - len(queries[sequence]) + token + 1
                begin = 0 if window is None else max(end - window, 0)
                if end <= 0:
                    continue
                live = (sequence, head, begin, end, pages)
                keys, values = (
                    _float64(_live(cache, *live)) * _live_scale(cache_scale, *live)
                    for cache, cache_scale in ((k_cache, k_scale), (v_cache, v_scale))
                )
                scores = query[group] @ (keys * of_elements).T * scale  # [group, end - begin]
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, _float64(sinks[group])[:, None]], dim=1)
                probabilities, lses[sequence][token, group] = _softmax(scores)
                outputs[sequence][token, group] = probabilities[:, : end - begin] @ values
    return output / (1.0 if out_scale is None else float(out_scale)), lse


def _query_tokens(
    rows: torch.Tensor, cu_seqlens: torch.Tensor | None, q_lens: torch.Tensor | None, packed_dims: int
) -> list[torch.Tensor]:
    """The live query tokens [tokens, q_heads, ...] of each sequence; with `packed_dims` there is one each."""
    if cu_seqlens is not None:
        starts = cu_seqlens.tolist()
        return [rows[start:stop] for start, stop in itertools.pairwise(starts)]
    padded = rows[:, None] if rows.dim() == packed_dims else rows
    lens = [padded.shape[1]] * len(padded) if q_lens is None else q_lens.tolist()
    return [each[: max(live, 0)] for each, live in zip(padded, lens, strict=True)]


def _per_head(scale: torch.Tensor | float | None, kv_heads: int) -> list[Any]:
    if scale is None:
        return [1.0] * kv_heads
    values = scale.reshape(-1).tolist() if isinstance(scale, torch.Tensor) else [float(scale)]
    return values * kv_heads if len(values) == 1 else values


def _of_queries(
    scale: torch.Tensor | float | None, q: torch.Tensor, kv_heads: int, cu_seqlens: torch.Tensor | None
) -> torch.Tensor:
    """A scale of queries as float64 in the shape of `q` without head_dim."""
    shape = q.shape[:-1]
    values = _float64(torch.as_tensor(1.0 if scale is None else scale, device=q.device))
    if values.shape == shape or values.numel() == 1:
        return values.expand(shape)
    if values.shape[-1] != shape[-1]:
        values = values.repeat_interleave(shape[-1] // kv_heads, dim=-1)
    if cu_seqlens is not None and values.dim() == 2:
        lens = cu_seqlens.diff().tolist()
        rows = [row.expand(live, -1) for row, live in zip(values, lens, strict=True)]
        return torch.cat([*rows, values.new_ones(shape[0] - sum(lens), shape[1])])
    return values.view(-1, *[1] * (q.dim() - 3), shape[-1]).expand(shape)


def _live_scale(
    scale: torch.Tensor | float | None,
    sequence: int,
    head: int,
    begin: int,
    end: int,
    pages: torch.Tensor | None,
) -> torch.Tensor | float:
    """Scale of tokens [begin, end) of one sequence and key-value head: a number or [end - begin, 1]."""
    if not isinstance(scale, torch.Tensor):
        return 1.0 if scale is None else scale
    if scale.dim() == 3:
        return _float64(_live(scale, sequence, head, begin, end, pages))[:, None]
    if scale.dim() == 2:
        scale = scale[sequence]
    return float(scale) if scale.numel() == 1 else float(scale[head])


def merge_states(
    o: States,
    lse: States,
    o2: torch.Tensor | None = None,
    lse2: torch.Tensor | None = None,
    *,
    mask: torch.Tensor | None = None,
    out_scale: torch.Tensor | float | None = None,
    lse_layout: str = "tokens-first",
    lse_base: str | int = "e",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over disjoint parts of a context, merged from the state of each part, in float64.

    Args:
        o: [..., head_dim], output of the first of two parts; or without `o2` of all: [parts, ..., head_dim],
            or a sequence.
        lse: [...], log-sum-exp of the logits of that part, or of all; -inf or +inf for an empty part.
        o2: output of the other part.
        lse2: log-sum-exp of the other part.
        mask: broadcasts to [parts, ...]: rows in which a part counts.
        out_scale: the output is divided by it.
        lse_layout: "tokens-first", or "heads-first": log-sum-exps are [heads, tokens].
        lse_base: "e" or 2, of the log-sum-exps.

    Returns:
        Output [..., head_dim] and log-sum-exp [...] over all, float64; 0 and -inf where all are empty.
    """
    outputs = _float64(torch.stack([*o] if o2 is None else [o, o2]))  # type: ignore[list-item]  # a tensor
    states = _float64(torch.stack([*lse] if lse2 is None else [lse, lse2]))  # type: ignore[list-item]  # the same
    unit = math.log(2.0) if lse_base == 2 else 1.0
    states = (states.transpose(-1, -2) if lse_layout == "heads-first" else states) * unit
    states = states.masked_fill(states == math.inf, -math.inf)
    if mask is not None:
        states = states.masked_fill(~mask, -math.inf)
    weights, merged_lse = _softmax(states.movedim(0, -1))
    weights = weights.movedim(-1, 0).unsqueeze(-1)  # [parts, ..., 1]
    merged = torch.where(weights == 0.0, 0.0, weights * outputs).sum(0)
    if out_scale is not None:
        merged = merged / out_scale
    merged_lse = merged_lse / unit
    return merged, merged_lse.transpose(-1, -2) if lse_layout == "heads-first" else merged_lse


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    context_lens: torch.Tensor | None = None,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    q_scale: torch.Tensor | float | None = None,
    k_scale: torch.Tensor | float | None = None,
    v_scale: torch.Tensor | float | None = None,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of prompts over a cached prefix and themselves, in float64.

    Args:
        q: [batch, tokens, q_heads, head_dim]; with `cu_seqlens` [tokens, q_heads, head_dim].
        k: like `q`, with kv_heads heads.
        v: like `k`, with its own head_dim.
        cu_seqlens: [batch + 1], integers: sequence i has the tokens cu_seqlens[i] to cu_seqlens[i + 1].
        lengths: [batch], integers, clamped to 0..tokens: live tokens of each sequence; None means all.
        context_lens: [batch], integers, clamped to 0..capacity: tokens of each cached prefix, without those
            of `q`.
        k_cache: [batch, capacity, kv_heads, head_dim]; with `block_table`
            [pages, page_size, kv_heads, head_dim].
        v_cache: like `k_cache`, with the head_dim of `v`.
        block_table: [batch, max_pages], integers: the pages of each sequence, in order.
        causal: whether a token attends to no later one.
        scale: multiplies the scores; None means 1 / sqrt(head_dim).
        window: sliding window: the oldest token that a token attends to is window - 1 before it.
        softcap: c: scores s become c tanh(s / c).
        sinks: [q_heads]: attention sinks, one more logit per query head, whose value is 0.
        q_scale: number, [] or [1]: multiplies the queries.
        k_scale: number, [], [1] or [kv_heads]: multiplies the keys of the cache, and `k` if it has their
            dtype or there is no cache.
        v_scale: the same for the values.
        rows: int64 [rows], the tokens of each sequence to compute, of a padded `q` alone; None means all.

    Returns:
        Output, the shape of `q` (or `rows` of its tokens) with the head_dim of `v`, and log-sum-exp of the
        logits (natural log) of that shape without head_dim, both float64. A dead token, and one that attends
        to none, gives output 0 and -inf.
    """
    packed = q.dim() == 3
    queries, keys, values = (x[None] if packed else x for x in (q, k, v))
    batch, tokens, q_heads, head_dim = queries.shape
    kv_heads, group = k.shape[-2], q_heads // k.shape[-2]
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    scale *= _per_head(q_scale, 1)[0]
    k_scales, v_scales = (_per_head(each, kv_heads) for each in (k_scale, v_scale))
    wanted = torch.arange(tokens, device=q.device) if rows is None else rows.to(q.device)
    output = torch.zeros(batch, len(wanted), q_heads, v.shape[-1], dtype=torch.float64, device=q.device)
    lse = torch.full(output.shape[:-1], -math.inf, dtype=torch.float64, device=q.device)
    for sequence, (first, length) in enumerate(_extents(batch, tokens, cu_seqlens, lengths)):
        at = 0 if packed else sequence
        pages = None if block_table is None else block_table[sequence]
        live = ((wanted >= first) & (wanted < first + length)).nonzero()[:, 0]
        for head in range(kv_heads):
            new = slice(first, first + length), head
            all_keys, all_values = _float64(keys[at][new]), _float64(values[at][new])
            if k_cache is None or v_cache is None or context_lens is None:
                all_keys, all_values = all_keys * k_scales[head], all_values * v_scales[head]
            else:
                capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
                prefix = min(max(int(context_lens[sequence]), 0), capacity)
                cached_keys, cached_values = (
                    _float64(_live(cache, sequence, head, 0, prefix, pages)) if prefix else new_tokens[:0]
                    for cache, new_tokens in ((k_cache, all_keys), (v_cache, all_values))
                )
                factors = (k_scales[head], v_scales[head]) if k.dtype == k_cache.dtype else (1.0, 1.0)
                all_keys = torch.cat([cached_keys * k_scales[head], all_keys * factors[0]])
                all_values = torch.cat([cached_values * v_scales[head], all_values * factors[1]])
            # Positions count the cached tokens; those of the keys are 0, 1, 2, ...
            position = (wanted[live] - first + len(all_keys) - length)[:, None]
            at_key = torch.arange(len(all_keys), device=q.device)
            hidden = (at_key > position) & causal
            if window is not None:
                hidden |= at_key <= position - window
            for q_head in range(head * group, (head + 1) * group):
                scores = _float64(queries[at, wanted[live], q_head]) @ all_keys.T * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                scores = scores.masked_fill(hidden, -math.inf)
                if sinks is not None:
                    scores = torch.cat([scores, _float64(sinks[q_head]).expand(len(live), 1)], dim=1)
                probabilities, lse[at, live, q_head] = _softmax(scores)
                output[at, live, q_head] = _weighted(probabilities[:, : len(all_keys)], all_values, ~hidden)
    return (output[0], lse[0]) if packed else (output, lse)


def _extents(
    batch: int, tokens: int, cu_seqlens: torch.Tensor | None, lengths: torch.Tensor | None
) -> list[tuple[int, int]]:
    """The first token and the number of tokens of each sequence."""
    if cu_seqlens is not None:
        bounds = [min(max(bound, 0), tokens) for bound in cu_seqlens.tolist()]
        return [(first, max(last - first, 0)) for first, last in itertools.pairwise(bounds)]
    if lengths is None:
        return [(0, tokens)] * batch
    return [(0, min(max(length, 0), tokens)) for length in lengths.tolist()]


def _weighted(probabilities: torch.Tensor, values: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Probabilities @ values; a value reaches only the rows that attend to its token, also if it is NaN."""
    finite = values.isfinite()
    result = probabilities @ values.where(finite, 0.0)
    for token in (~finite).any(dim=1).nonzero()[:, 0].tolist():
        row = values[token].where(~finite[token], 0.0)
        product = probabilities[:, token, None] * row
        result += product.where(attended[:, token, None] & ~finite[token], 0.0)
    return result


def _live(
    cache: torch.Tensor, sequence: int, head: int, begin: int, end: int, pages: torch.Tensor | None
) -> torch.Tensor:
    """Tokens [begin, end) of one sequence and key-value head: [end - begin, head_dim]."""
    if pages is None:
        return cache[sequence, begin:end, head]
    page_size = cache.shape[1]
    # Unused slots of the first and last page are never read.
    tokens = []
    for page in range(begin // page_size, -(-end // page_size)):
        first, last = max(begin - page * page_size, 0), min(end - page * page_size, page_size)
        tokens.append(_widened(cache[int(pages[page]), first:last, head]))
    return torch.cat(tokens)


def _softmax(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and log-sum-exp along the last dimension; a row of -inf gives 0 and -inf."""
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse)[..., None]), lse


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Float8 as float32, exactly: PyTorch lacks most operations of float8."""
    return x.to(torch.float32) if x.element_size() == 1 else x


def _float64(x: torch.Tensor) -> torch.Tensor:
    return _widened(x).to(torch.float64)
