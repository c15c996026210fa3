"""The end of decode attention: finished rows of an item, stored by the split or by the merge kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from .interpreter import mend_interpreter

mend_interpreter()


@triton.jit  # type: ignore[untyped-decorator]
def finished(acc: tl.tensor, maximum: tl.tensor, total: tl.tensor) -> tl.tuple:
    """Output and base-2 log-sum-exp of weighted values, their base-2 maximum and the sum of their weights."""
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    return out, tl.where(total == 0.0, float("-inf"), maximum + tl.log2(total))


@triton.jit  # type: ignore[untyped-decorator]
def _with_sink(out: tl.tensor, lse_log2: tl.tensor, sink_log2: tl.tensor) -> tl.tuple:
    """Output [rows, columns] and base-2 log-sum-exp [rows] with one more logit, whose value is 0."""
    largest = tl.maximum(lse_log2, sink_log2)
    offset = tl.where(largest == float("-inf"), 0.0, largest)
    kept = tl.exp2(lse_log2 - offset)
    total = kept + tl.exp2(sink_log2 - offset)
    share = kept / tl.where(total == 0.0, 1.0, total)
    return out * share[:, None], tl.where(total == 0.0, float("-inf"), offset + tl.log2(total))


@triton.jit  # type: ignore[untyped-decorator]
def store_result(
    out: tl.tensor,
    lse_log2: tl.tensor,
    rows: tl.tensor,
    live_rows: tl.tensor,
    sequence: tl.tensor,
    kv_head: tl.tensor,
    length: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    v_factor: tl.tensor,
    kv_heads: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_token: tl.tensor,
    stride_out_head: tl.tensor,
    stride_v_scale: tl.tensor,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
) -> None:
    """Stores finished rows of one item; sinks, the scale of the values and natural logarithms come here."""
    tokens = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    if sinks_ptr is not None:
        sinks = tl.load(sinks_ptr + heads, mask=live_rows, other=0.0).to(tl.float32) * 1.4426950408889634
        # A query token before the sequence's start has no result, and a sink gives it none.
        sinks = tl.where(length - QUERY_TOKENS + tokens >= 0, sinks, float("-inf"))
        out, lse_log2 = _with_sink(out, lse_log2, sinks)
    factor = v_factor
    if v_scale_ptr is not None:
        factor = factor * tl.load(v_scale_ptr + kv_head * stride_v_scale).to(tl.float32)
    offs_v = tl.arange(0, out.shape[1])
    out_ptrs = (
        out_ptr
        + sequence.to(tl.int64) * stride_out_batch
        + tokens.to(tl.int64)[:, None] * stride_out_token
        + heads.to(tl.int64)[:, None] * stride_out_head
        + offs_v[None, :]
    )
    live = live_rows[:, None] & (offs_v < V_HEAD_DIM)[None, :]
    tl.store(out_ptrs, (out * factor).to(out_ptr.dtype.element_ty), mask=live)
    if lse_ptr is not None:
        row = (sequence.to(tl.int64) * QUERY_TOKENS + tokens) * (kv_heads * GROUP) + heads
        tl.store(lse_ptr + row, lse_log2 * 0.6931471805599453, mask=live_rows)
