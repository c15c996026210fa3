"""Decode attention: one or a few query tokens a sequence against its key-value cache.

For each sequence of length L and query head h of the group of key-value head g:
    out[h] = sum over t < L of softmax(scale q[h] . k[t, g]) v[t, g]
Operations: 4 L q_heads head_dim a query token. Bytes at least: 2 L kv_heads head_dim elements of cache,
however many query tokens and heads share them. Their ratio, 2 group query_tokens / element bytes, is far
below what a GPU balances: memory bandwidth is the bound, so every live key and value is read once and nothing
else of size.

The rows of one matrix product are the query tokens and heads that share a key-value head, padded to 16, the
height of a matrix instruction; more rows than the registers hold go in blocks, each an item of its own. The
split kernel gives each program the tiles of keys and values that `decode_shares` works out for it. What it
makes of a whole item is the result; what it makes of part of one is kept in float32 with its log-sum-exp, and
the merge kernel adds the parts in their order.

Scores are in base 2: exp(x) = exp2(x log2(e)), with log2(e) and the scales of the scores in one factor. Tiles
whose tokens every row sees need no mask, and are the hot loop; what is left at the ends of an item goes in
small masked tiles. Caches of 8 bits are multiplied as float16, which holds each of their values.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import checks
from .decode_plan import DecodePlan, plan_decode
from .decode_schedule import LENGTHS_BLOCK, balanced_chunk, live_tokens, split_chunk
from .decode_tile import as_float16, attend, finished, store_result
from .decode_tiling import COMBINE_PROGRAMS, EDGE_TOKENS, ITEM_COST_TILES, DecodeTiling
from .gpu_limits import gpu_limits
from .interpreter import patch_interpreter

patch_interpreter()

_LOG2_E = 1.0 / math.log(2.0)
_COMBINE_BLOCK_PARTS = 16
_E4M3_BITS_FACTOR = 256.0
"""By how much bits of float8 e4m3 are too small as float16: the biases of their exponents differ by 8."""


@triton.jit  # type: ignore[untyped-decorator]
def _split_kv_kernel(  # noqa: C901, PLR0915  (one item after another, read from top to bottom)
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    block_table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    partial_lse_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    score_factor: tl.tensor,
    v_factor: tl.tensor,
    softcap_log2: tl.tensor,
    window: tl.tensor,
    batch: tl.tensor,
    kv_heads: tl.tensor,
    capacity: tl.tensor,
    stride_q_batch: tl.tensor,
    stride_q_token: tl.tensor,
    stride_q_head: tl.tensor,
    stride_k_batch: tl.tensor,
    stride_k_head: tl.tensor,
    stride_v_batch: tl.tensor,
    stride_v_head: tl.tensor,
    stride_table: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_token: tl.tensor,
    stride_out_head: tl.tensor,
    stride_k_scale: tl.tensor,
    stride_v_scale: tl.tensor,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    K_STRIDE_TOKEN: tl.constexpr,
    K_STRIDE_PAGE: tl.constexpr,
    V_STRIDE_TOKEN: tl.constexpr,
    V_STRIDE_PAGE: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    E4M3_BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    MIN_TILES: tl.constexpr,
    ITEM_COST_TILES: tl.constexpr,
    LENGTHS_BLOCK: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EDGE_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> None:
    """The items of one program's share, each over those of its tiles that are in the share.

    Strides of tokens and pages are compile-time constants: the addresses of a tile then differ by constants.
    Cache strides outside the hot loop come divided by STRIDE_UNIT: the product tells their alignment.
    """
    ROWS: tl.constexpr = GROUP * QUERY_TOKENS
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_G - 1) // BLOCK_G
    SLOT_ROWS: tl.constexpr = ROWS if ROW_BLOCKS == 1 else BLOCK_G
    EDGES: tl.constexpr = BLOCK_N // EDGE_N
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    items_per_sequence = kv_heads * ROW_BLOCKS
    if NUM_SPLITS > 0:
        first_item, share_first, stop_item, last_item, share_last, parts = split_chunk(
            program, context_lens_ptr, capacity, window, items_per_sequence,
            QUERY_TOKENS, HAS_WINDOW, NUM_SPLITS, BLOCK_N,
        )  # fmt: skip
    else:
        first_item, share_first, stop_item, last_item, share_last, parts = balanced_chunk(
            program, programs, context_lens_ptr, batch, capacity, window, items_per_sequence,
            QUERY_TOKENS, HAS_WINDOW, MIN_TILES, BLOCK_N, ITEM_COST_TILES, LENGTHS_BLOCK,
        )  # fmt: skip
    if parts_ptr is not None:
        tl.store(parts_ptr + 2 * program.to(tl.int64), last_item)
        tl.store(parts_ptr + 2 * program.to(tl.int64) + 1, parts)

    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    for at in tl.range(0, stop_item - first_item, disable_licm=True):
        item = first_item + at
        sequence = (item // items_per_sequence).to(tl.int64)
        kv_head = item % items_per_sequence // ROW_BLOCKS
        rows = item % ROW_BLOCKS * BLOCK_G + tl.arange(0, BLOCK_G)
        live_rows = rows < ROWS
        length = tl.load(context_lens_ptr + sequence)
        begin, end = live_tokens(length, capacity, window, QUERY_TOKENS, HAS_WINDOW)
        first_tile = begin // BLOCK_N
        last_tile = tl.cdiv(end, BLOCK_N)
        share_begin = first_tile + tl.where(item == first_item, share_first, 0)
        share_end = tl.where(item == last_item, first_tile + share_last, last_tile)

        heads = (kv_head * GROUP + rows % GROUP).to(tl.int64)
        q_ptrs = (
            q_ptr
            + sequence * stride_q_batch
            + (rows // GROUP).to(tl.int64)[:, None] * stride_q_token
            + heads[:, None] * stride_q_head
            + offs_d[None, :]
        )
        q = tl.load(q_ptrs, mask=live_rows[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)
        scale = score_factor
        if k_scale_ptr is not None:
            scale = scale * tl.load(k_scale_ptr + kv_head * stride_k_scale).to(tl.float32)
        # A maximum of scores is one of scaled scores where the factor is not negative.
        q = tl.where(scale < 0.0, -q, q)
        factor = tl.full((BLOCK_G,), 1.0, tl.float32) * tl.abs(scale)
        if k_ptr.dtype.element_ty.primitive_bitwidth == 8 and q.dtype == tl.bfloat16:
            q, row_factor = as_float16(q)
            factor *= row_factor

        k_head = k_ptr + kv_head.to(tl.int64) * stride_k_head * STRIDE_UNIT
        v_head = v_ptr + kv_head.to(tl.int64) * stride_v_head * STRIDE_UNIT
        if PAGE_SIZE == 0:
            k_head += sequence * stride_k_batch * STRIDE_UNIT
            v_head += sequence * stride_v_batch * STRIDE_UNIT
        table_ptr = None if PAGE_SIZE == 0 else block_table_ptr + sequence * stride_table

        acc = tl.zeros((BLOCK_G, BLOCK_V), tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        maximum = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        positions = end - QUERY_TOKENS + rows // GROUP
        # Tokens [whole_begin, whole_end) are seen by every row.
        whole_end = tl.maximum(end - QUERY_TOKENS + 1, 0)
        whole_begin = tl.maximum(end - window, 0) if HAS_WINDOW else begin
        hot_begin = tl.minimum(tl.maximum(tl.cdiv(whole_begin, BLOCK_N), share_begin), share_end)
        hot_end = tl.minimum(tl.maximum(whole_end // BLOCK_N, hot_begin), share_end)
        if HAS_WINDOW:
            acc, total, maximum = attend(
                tl.maximum(share_begin * EDGES, begin // EDGE_N), hot_begin * EDGES,
                begin, end, acc, total, maximum, q, factor, positions,
                k_head, v_head, table_ptr, window, softcap_log2,
                HEAD_DIM, V_HEAD_DIM, QUERY_TOKENS, PAGE_SIZE,
                K_STRIDE_TOKEN, K_STRIDE_PAGE, V_STRIDE_TOKEN, V_STRIDE_PAGE,
                HAS_WINDOW, HAS_SOFTCAP, E4M3_BITS, PRECISION,
                BLOCK_G, BLOCK_D, BLOCK_V, EDGE_N, True, NUM_STAGES,
            )  # fmt: skip
        acc, total, maximum = attend(
            hot_begin, hot_end, begin, end, acc, total, maximum, q, factor, positions,
            k_head, v_head, table_ptr, window, softcap_log2,
            HEAD_DIM, V_HEAD_DIM, QUERY_TOKENS, PAGE_SIZE,
            K_STRIDE_TOKEN, K_STRIDE_PAGE, V_STRIDE_TOKEN, V_STRIDE_PAGE,
            HAS_WINDOW, HAS_SOFTCAP, E4M3_BITS, PRECISION,
            BLOCK_G, BLOCK_D, BLOCK_V, BLOCK_N, False, NUM_STAGES,
        )  # fmt: skip
        acc, total, maximum = attend(
            hot_end * EDGES, tl.minimum(share_end * EDGES, tl.cdiv(end, EDGE_N)),
            begin, end, acc, total, maximum, q, factor, positions,
            k_head, v_head, table_ptr, window, softcap_log2,
            HEAD_DIM, V_HEAD_DIM, QUERY_TOKENS, PAGE_SIZE,
            K_STRIDE_TOKEN, K_STRIDE_PAGE, V_STRIDE_TOKEN, V_STRIDE_PAGE,
            HAS_WINDOW, HAS_SOFTCAP, E4M3_BITS, PRECISION,
            BLOCK_G, BLOCK_D, BLOCK_V, EDGE_N, True, NUM_STAGES,
        )  # fmt: skip

        out, lse_log2 = finished(acc, maximum, total)
        begun = share_begin == first_tile
        if begun & (share_end == last_tile):
            store_result(
                out, lse_log2, rows, live_rows, sequence, kv_head, end,
                out_ptr, lse_ptr, sinks_ptr, v_scale_ptr, v_factor, kv_heads,
                stride_out_batch, stride_out_token, stride_out_head, stride_v_scale,
                GROUP, QUERY_TOKENS, V_HEAD_DIM,
            )  # fmt: skip
        elif partial_ptr is not None:
            slot = program.to(tl.int64)
            if NUM_SPLITS == 0:
                slot += tl.where(begun, 0, programs)
            places = slot * SLOT_ROWS + rows % BLOCK_G
            live = live_rows[:, None] & (offs_v < V_HEAD_DIM)[None, :]
            tl.store(partial_ptr + places[:, None] * V_HEAD_DIM + offs_v[None, :], out, mask=live)
            tl.store(partial_lse_ptr + places, lse_log2, mask=live_rows)


@triton.jit  # type: ignore[untyped-decorator]
def _combine_kernel(
    partial_ptr: tl.tensor,
    partial_lse_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    v_factor: tl.tensor,
    kv_heads: tl.tensor,
    capacity: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_token: tl.tensor,
    stride_out_head: tl.tensor,
    stride_v_scale: tl.tensor,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    COMBINE_ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """COMBINE_ROWS rows of the item that one program of the split kernel began and did not end.

    The parts are added in their order, BLOCK_S at a time.
    """
    ROWS: tl.constexpr = GROUP * QUERY_TOKENS
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_G - 1) // BLOCK_G
    SLOT_ROWS: tl.constexpr = ROWS if ROW_BLOCKS == 1 else BLOCK_G
    first_program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    item = tl.load(parts_ptr + 2 * first_program)
    parts = tl.load(parts_ptr + 2 * first_program + 1)
    first_row = tl.program_id(1) * COMBINE_ROWS
    item_rows = tl.minimum(ROWS - item % ROW_BLOCKS * BLOCK_G, SLOT_ROWS)
    last_row = tl.where(parts > 0, tl.minimum(first_row + COMBINE_ROWS, item_rows), first_row)

    offs_v = tl.arange(0, BLOCK_V)
    live_v = offs_v < V_HEAD_DIM
    for row in range(first_row, last_row):
        maximum = tl.full((1,), float("-inf"), tl.float32)
        total = tl.zeros((1,), tl.float32)
        acc = tl.zeros((1, BLOCK_V), tl.float32)
        for first in range(0, parts, BLOCK_S):
            part = first + tl.arange(0, BLOCK_S)
            live = part < parts
            slots = first_program + part
            if NUM_SPLITS == 0:
                # The first part lies in its program's slot for what it began, the others in the other one.
                slots += tl.where(part == 0, 0, programs)
            at = slots * SLOT_ROWS + row
            lses = tl.load(partial_lse_ptr + at, mask=live, other=float("-inf"))  # [BLOCK_S]
            partials = tl.load(
                partial_ptr + at[:, None] * V_HEAD_DIM + offs_v[None, :],
                mask=live[:, None] & live_v[None, :],
                other=0.0,
            )  # [BLOCK_S, BLOCK_V]
            new_maximum = tl.maximum(maximum, tl.max(lses, 0))
            offset = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            weights = tl.exp2(lses - offset)
            decay = tl.exp2(maximum - offset)
            total = total * decay + tl.sum(weights, 0)
            acc = acc * decay[:, None] + tl.sum(weights[:, None] * partials, 0)[None, :]
            maximum = new_maximum
        out, lse_log2 = finished(acc, maximum, total)
        sequence = item // (kv_heads * ROW_BLOCKS)
        _, end = live_tokens(tl.load(context_lens_ptr + sequence), capacity, 0, QUERY_TOKENS, False)
        rows = item % ROW_BLOCKS * BLOCK_G + row + tl.arange(0, 1)
        store_result(
            out, lse_log2, rows, rows < ROWS, sequence, item % (kv_heads * ROW_BLOCKS) // ROW_BLOCKS, end,
            out_ptr, lse_ptr, sinks_ptr, v_scale_ptr, v_factor, kv_heads,
            stride_out_batch, stride_out_token, stride_out_head, stride_v_scale,
            GROUP, QUERY_TOKENS, V_HEAD_DIM,
        )  # fmt: skip


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | float | None = None,
    v_scale: torch.Tensor | float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    workspace: torch.Tensor | None = None,
    tiling: DecodeTiling | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of one or a few query tokens a sequence over the live part of its key-value cache.

    Not differentiable. The same bits every run. The launch depends on shapes and capacity alone,
    never on the lengths, which stay on the device: it can be captured in a CUDA graph.

    Args:
        q: [batch, q_heads, head_dim] or [batch, query_tokens, q_heads, head_dim], bfloat16, float16
            or float32; head_dim a multiple of 8 from 16 to 256, its stride 1. The 1 to 8 query
            tokens are the last ones of the sequence, and each sees those up to itself.
        k_cache: [batch, capacity, kv_heads, head_dim] with any strides but 1 for head_dim, so
            tokens or heads may come first in memory; with `block_table`
            [pages, page_size, kv_heads, head_dim]. Dtype of `q`, float8_e4m3fn, float8_e5m2 or
            int8. q_heads is kv_heads times 1 to 64; query heads h group, ..., h group + group - 1
            read key-value head h.
        v_cache: as `k_cache`, with a head_dim (of the same limits) and strides of its own.
        context_lens: [batch] int32: how many tokens of each cache are live, those of `q` among
            them, clamped to 0..capacity. What lies past them is never read.
        block_table: [batch, max_pages] int32: the pages of each sequence in order, so that
            capacity = max_pages x page_size. Entries past the live pages are never read; live
            entries must lie in 0..pages - 1, which is not checked.
        scale: multiplies the scores; 1 / sqrt(head_dim) when none.
        window: how many tokens a query token sees, itself the last; older ones are not read. All
            when none.
        softcap: positive c: scores s become c tanh(s / c), after `scale` and `k_scale`.
        sinks: [q_heads], bfloat16, float16 or float32: a logit beside the scaled scores of each query
            head, whose value is 0; it counts in the log-sum-exp.
        k_scale: what elements of `k_cache` are to be multiplied by: a number, or float32 [], [1] or
            [kv_heads].
        v_scale: the same of `v_cache`.
        num_splits: cut each sequence into so many shares by its own length, so that its result does
            not depend on the rest of the batch; shares of equal size across the batch when none.
        return_lse: also return the log-sum-exp of the logits.
        out: where to write the output: shape of `q` with the head_dim of `v_cache`, dtype of `q`,
            stride 1 for head_dim, not overlapping the inputs. With `return_lse` it may be a pair, the
            second for the log-sum-exp, contiguous. New tensors when none.
        workspace: contiguous memory for partial results, of any dtype, at least
            `decode_attention_workspace_bytes` long and aligned to 16 bytes, not shared with a call
            that may run at the same time. With it and `out` (the pair, with `return_lse`) nothing is
            allocated. New when none.
        tiling: how to cut the work; `choose_decode_tiling` decides when none.

    Returns:
        Output [batch, (query_tokens,) q_heads, head_dim of `v_cache`], dtype of `q`; with
        `return_lse` a pair with the natural log-sum-exp [batch, (query_tokens,) q_heads], float32.
        A sequence of length 0 gives output 0 and -inf, and so does a query token before its start.

    Raises:
        ValueError: an argument of the wrong shape, strides, dtype, device or size; or CPU tensors
            while Triton compiles its kernels.
    """
    checks.check_decode_attention(
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        context_lens=context_lens,
        block_table=block_table,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
        num_splits=num_splits,
        return_lse=return_lse,
        out=out,
        tiling=tiling,
    )
    plan = plan_decode(q, k_cache, v_cache, block_table, num_splits, tiling, gpu_limits(q.device))
    workspace_bytes = plan.workspace_bytes
    if workspace is not None:
        checks.check_workspace(workspace, at_least_bytes=workspace_bytes, beside=("q", q))
    elif workspace_bytes:
        workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=q.device)
    out, lse = out if isinstance(out, tuple) else (out, None)
    if out is None:
        out = torch.empty((*q.shape[:-1], v_cache.shape[-1]), dtype=q.dtype, device=q.device)
    if return_lse and lse is None:
        lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    _launch(
        plan,
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        context_lens=context_lens,
        block_table=block_table,
        scale=scale if k_scale is None or isinstance(k_scale, torch.Tensor) else scale * k_scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        k_scale=k_scale if isinstance(k_scale, torch.Tensor) else None,
        v_scale=v_scale if isinstance(v_scale, torch.Tensor) else None,
        v_factor=1.0 if v_scale is None or isinstance(v_scale, torch.Tensor) else float(v_scale),
        out=out,
        lse=lse,
        workspace=workspace,
    )
    return out if lse is None else (out, lse)


def decode_attention_workspace_bytes(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | float | None = None,
    v_scale: torch.Tensor | float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    tiling: DecodeTiling | None = None,
) -> int:
    """Bytes of `workspace` that `decode_attention` takes with the same arguments: from shapes alone.

    Raises:
        ValueError: as `decode_attention`.
    """
    checks.check_decode_attention(
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        context_lens=context_lens,
        block_table=block_table,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
        num_splits=num_splits,
        return_lse=return_lse,
        out=None,
        tiling=tiling,
    )
    return plan_decode(
        q, k_cache, v_cache, block_table, num_splits, tiling, gpu_limits(q.device)
    ).workspace_bytes


def _launch(
    plan: DecodePlan,
    *,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    v_factor: float,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    workspace: torch.Tensor | None,
) -> None:
    """Launches the split kernel and, where it may leave parts, the merge kernel."""
    tiling, kv_heads = plan.tiling, k_cache.shape[2]
    if plan.e4m3_bits:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
        scale, v_factor = scale * _E4M3_BITS_FACTOR, v_factor * _E4M3_BITS_FACTOR
    partials = partial_lses = parts = None
    if plan.slots:
        assert workspace is not None  # noqa: S101  (what the caller has just made)
        partials, partial_lses, parts = plan.workspace_parts(workspace)
    unit = _stride_unit(k_cache, v_cache)
    block_v = triton.next_power_of_2(plan.v_head_dim)
    results = {
        "context_lens_ptr": context_lens,
        "out_ptr": out,
        "lse_ptr": lse,
        "partial_ptr": partials,
        "partial_lse_ptr": partial_lses,
        "parts_ptr": parts,
        "sinks_ptr": sinks,
        "v_scale_ptr": v_scale,
        "v_factor": v_factor,
        "kv_heads": kv_heads,
        "capacity": plan.capacity,
        "stride_out_batch": out.stride(0),
        "stride_out_token": out.stride(1) if out.dim() == 4 else 0,
        "stride_out_head": out.stride(-2),
        "stride_v_scale": 0 if v_scale is None or v_scale.numel() == 1 else v_scale.stride(0),
        "GROUP": plan.group,
        "QUERY_TOKENS": plan.query_tokens,
        "V_HEAD_DIM": plan.v_head_dim,
        "NUM_SPLITS": tiling.num_splits,
        "BLOCK_G": tiling.block_g,
        "BLOCK_V": block_v,
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _split_kv_kernel[(plan.programs,)](
            **results,
            q_ptr=q,
            k_ptr=k_cache,
            v_ptr=v_cache,
            block_table_ptr=block_table,
            k_scale_ptr=k_scale,
            score_factor=scale * _LOG2_E if softcap is None else scale / softcap,
            softcap_log2=0.0 if softcap is None else softcap * _LOG2_E,
            window=0 if window is None else min(window, plan.capacity),
            batch=q.shape[0],
            stride_q_batch=q.stride(0),
            stride_q_token=q.stride(1) if q.dim() == 4 else 0,
            stride_q_head=q.stride(-2),
            stride_k_batch=k_cache.stride(0) // unit,
            stride_k_head=k_cache.stride(2) // unit,
            stride_v_batch=v_cache.stride(0) // unit,
            stride_v_head=v_cache.stride(2) // unit,
            stride_table=0 if block_table is None else block_table.stride(0),
            stride_k_scale=0 if k_scale is None or k_scale.numel() == 1 else k_scale.stride(0),
            HEAD_DIM=q.shape[-1],
            PAGE_SIZE=plan.page_size,
            K_STRIDE_TOKEN=k_cache.stride(1),
            K_STRIDE_PAGE=k_cache.stride(0) if plan.page_size else 0,
            V_STRIDE_TOKEN=v_cache.stride(1),
            V_STRIDE_PAGE=v_cache.stride(0) if plan.page_size else 0,
            STRIDE_UNIT=unit,
            HAS_WINDOW=window is not None,
            HAS_SOFTCAP=softcap is not None,
            E4M3_BITS=plan.e4m3_bits,
            PRECISION="ieee",
            MIN_TILES=tiling.min_tiles,
            ITEM_COST_TILES=ITEM_COST_TILES,
            LENGTHS_BLOCK=LENGTHS_BLOCK,
            BLOCK_D=triton.next_power_of_2(q.shape[-1]),
            BLOCK_N=tiling.block_n,
            EDGE_N=EDGE_TOKENS,
            NUM_STAGES=tiling.num_stages,
            num_warps=tiling.num_warps,
            maxnreg=tiling.max_registers,
            num_stages=tiling.num_stages,
        )
        if plan.slots:
            combine_rows = math.ceil(plan.slot_rows / COMBINE_PROGRAMS)
            _combine_kernel[(plan.programs, math.ceil(plan.slot_rows / combine_rows))](
                **results,
                COMBINE_ROWS=combine_rows,
                BLOCK_S=_COMBINE_BLOCK_PARTS,
                num_warps=4,
                maxnreg=128,  # more than it takes: left alone, the compiler may spill to take fewer
            )


def _stride_unit(*caches: torch.Tensor) -> int:
    """8 where every cache stride is a multiple of 8, 1 elsewhere.

    Triton knows of an argument only whether 16 divides it. 8 elements of 2 bytes already make the
    16 of an asynchronous load, and a head_dim of 40 or 72 gives strides of no more.
    """
    return 8 if all(stride % 8 == 0 for cache in caches for stride in cache.stride()[:3]) else 1
