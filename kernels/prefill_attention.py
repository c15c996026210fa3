"""Prefill attention: prompts attend causally to themselves and to a cached prefix (FlashAttention).

For query head h of the GQA group of key-value head g, and token i of a sequence with a prefix of c tokens:
    out[i, h] = sum over t <= c + i of softmax(scale q[i, h] . k[t, g]) v[t, g]
Keys and values of the prefix come from a contiguous or paged cache, those of the new tokens from k and v.
Operations: 2 (head_dim + v_head_dim) per query head and (query, key) pair; n (n + 1) / 2 + c n pairs for n
tokens. Minimum bytes: q, k, v, the prefix and the output, once. With prompts in the thousands their ratio is
far above the balance point of a GPU: the tensor cores are the bound. The second one is the exponential of
every pair.

An item is a block of BLOCK_M query tokens of one query head. The kernel is persistent: each CTA loops over
the items that `prefill_attention_schedule` assigns to it, those with the most keys first. Per item it loops
over KV tiles with an online softmax in base 2. Tiles that all rows attend to are the hot loop, without masks.
Tiles on the diagonal, at the ends of a window and at the end of a sequence are masked; tiles above the
diagonal or outside the window are neither loaded nor computed.

A value that is not finite must not reach a row that does not attend to its token, but its weight of 0 times
NaN is NaN. Checking each masked tile for that would slow all of them. So each CTA checks its results, and if
one is not finite, it computes such items again, carefully, after all others.

This file is over 400 lines because the kernel and the only function that launches it belong together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import prefill_attention_checks as checks
from .decode_tile import _with_sink, normalized
from .float8 import E4M3_BITS_FACTOR
from .gpu_limits import gpu_limits
from .interpreter import patch_interpreter
from .launch import allocate, cached_launches, launch
from .prefill_attention_plan import PLANNED_OPTIONS, PrefillAttentionPlan, TmaTiles, plan_prefill_attention
from .prefill_attention_schedule import (
    ORDER_BLOCKS,
    ORDER_HEADER,
    ORDER_SEQUENCES,
    cached_tokens,
    new_tokens,
    order_kernel,
)
from .prefill_attention_tile import attend_part, initial_state, load_queries, not_finite_values
from .scale_factors import DecodeFactors, decode_factors

if TYPE_CHECKING:
    from .prefill_attention_tiling import PrefillAttentionTiling

patch_interpreter()

CAREFUL_TOKENS = 32
"""KV tokens per tile of an item that is computed again: the smallest depth of a float8 `tl.dot`."""

CAREFUL_COLUMNS = 16
"""Columns of its output at a time to which values that are not finite are added."""


@triton.jit  # type: ignore[untyped-decorator]
def _prefill_attention_kernel(  # noqa: C901, PLR0912, PLR0915  (one item loop, read from top to bottom)
    q_desc: tl.tensor,
    q_rest_desc: tl.tensor,
    k_desc: tl.tensor,
    k_rest_desc: tl.tensor,
    v_desc: tl.tensor,
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    block_table_ptr: tl.tensor,
    order_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    q_scale_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    score_factor: tl.tensor,
    cache_score_factor: tl.tensor,
    v_factor: tl.tensor,
    cache_v_factor: tl.tensor,
    softcap_log2: tl.tensor,
    window: tl.tensor,
    items: tl.tensor,
    batch: tl.tensor,
    tokens: tl.tensor,
    capacity: tl.tensor,
    q_heads: tl.tensor,
    stride_q_batch: tl.tensor,
    stride_q_token: tl.tensor,
    stride_q_head: tl.tensor,
    stride_k_batch: tl.tensor,
    stride_k_head: tl.tensor,
    stride_v_batch: tl.tensor,
    stride_v_head: tl.tensor,
    stride_k_cache_batch: tl.tensor,
    stride_k_cache_head: tl.tensor,
    stride_v_cache_batch: tl.tensor,
    stride_v_cache_head: tl.tensor,
    stride_table: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_token: tl.tensor,
    stride_out_head: tl.tensor,
    stride_lse_batch: tl.tensor,
    stride_k_scale: tl.tensor,
    stride_v_scale: tl.tensor,
    q_rows_batch: tl.tensor,
    q_rows_head: tl.tensor,
    q_columns_head: tl.tensor,
    k_rows_batch: tl.tensor,
    k_rows_head: tl.tensor,
    k_columns_head: tl.tensor,
    v_rows_batch: tl.tensor,
    v_rows_head: tl.tensor,
    v_columns_head: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    K_STRIDE_TOKEN: tl.constexpr,
    V_STRIDE_TOKEN: tl.constexpr,
    K_CACHE_STRIDE_TOKEN: tl.constexpr,
    K_CACHE_STRIDE_PAGE: tl.constexpr,
    V_CACHE_STRIDE_TOKEN: tl.constexpr,
    V_CACHE_STRIDE_PAGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    CACHE_HAS_SOFTCAP: tl.constexpr,
    SCALES_CACHE_ALONE: tl.constexpr,
    DTYPE: tl.constexpr,
    P_LOG2: tl.constexpr,
    PROMOTED: tl.constexpr,
    SIGNED: tl.constexpr,
    HALVES: tl.constexpr,
    SAME_TILES: tl.constexpr,
    ORDER_HEADER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SUMS: tl.constexpr,
    CAREFUL_N: tl.constexpr,
    CAREFUL_COLUMNS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
) -> None:
    """Persistent kernel: each CTA loops over items (a row block of a sequence and a query head).

    Token strides are compile-time constants, so that addresses in a tile differ by constants. Without a cache
    `k_cache_ptr` is None. DTYPE is that of both dots. SAME_TILES says that values are at the rows and columns
    of their keys.

    The first parameter is a descriptor: the address of the parameters is then one of a descriptor, and the
    compiler keeps it in a uniform register. Otherwise each load takes 6 instructions more on sm_100.
    """
    LAYOUT: tl.constexpr = (HEAD_DIM, V_HEAD_DIM, 0, K_STRIDE_TOKEN, 0, V_STRIDE_TOKEN, 0)
    CACHE_LAYOUT: tl.constexpr = (
        HEAD_DIM, V_HEAD_DIM, PAGE_SIZE,
        K_CACHE_STRIDE_TOKEN, K_CACHE_STRIDE_PAGE, V_CACHE_STRIDE_TOKEN, V_CACHE_STRIDE_PAGE,
    )  # fmt: skip
    OPTIONS: tl.constexpr = (CAUSAL, HAS_WINDOW, P_LOG2, PROMOTED, SIGNED, HALVES, SAME_TILES)
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    if order_ptr is not None:
        items = tl.load(order_ptr) * q_heads
    blocks = tl.cdiv(tokens, BLOCK_M)
    # Rounds of one item per CTA, back and forth. The last round may have no item for this CTA.
    rounds = items // programs
    in_round = tl.where(rounds % 2 == 0, program, programs - 1 - program)
    rounds += (in_round < items % programs).to(tl.int32)
    # On sm_100 a lane has a whole row; Triton 3.6 does not compile further reductions of it.
    FLAG_BY_ROW: tl.constexpr = SUMS == 1
    not_finite = tl.zeros((BLOCK_M,), tl.int32) if FLAG_BY_ROW else tl.zeros((), tl.int32)
    for CAREFUL in tl.static_range(2):
        last = rounds
        if CAREFUL:
            last = tl.where((tl.max(not_finite, 0) if FLAG_BY_ROW else not_finite) > 0, rounds, 0)
        for index in tl.range(0, last, disable_licm=True):
            item = index * programs + tl.where(index % 2 == 0, program, programs - 1 - program)
            head = item % q_heads
            if order_ptr is None:
                sequence = item // q_heads % batch
                block = blocks - 1 - item // (q_heads * batch)
            else:
                entry = order_ptr + ORDER_HEADER + 2 * (item // q_heads)
                sequence = tl.load(entry)
                block = tl.load(entry + 1)
            kv_head = head // GROUP
            first, length = new_tokens(sequence, sequence < batch, cu_seqlens_ptr, lengths_ptr, tokens)
            row = block * BLOCK_M
            rows = row + tl.arange(0, BLOCK_M)
            live_rows = rows < length
            last_row = tl.minimum(row + BLOCK_M, length)
            if CAREFUL:
                tl.debug_barrier()  # other threads have stored what is loaded next
                offs_v = tl.arange(0, BLOCK_V)
                result_ptrs = (
                    out_ptr
                    + sequence.to(tl.int64) * stride_out_batch
                    + (first + rows).to(tl.int64)[:, None] * stride_out_token
                    + head.to(tl.int64) * stride_out_head
                    + offs_v[None, :]
                )
                mask = live_rows[:, None] & (offs_v < V_HEAD_DIM)[None, :]
                result = tl.load(result_ptrs, mask=mask, other=0.0)
                finite = tl.abs(result.to(tl.float32)) < float("inf")
                again = tl.max(tl.max(tl.where(finite, 0, 1), 1), 0) > 0
                length = tl.where(again, length, 0)
            # A block of dead tokens attends to nothing.
            length = tl.where(row < length, length, 0)

            factor = score_factor
            cache_factor = cache_score_factor
            if q_scale_ptr is not None:
                factor = factor * tl.load(q_scale_ptr)
                cache_factor = cache_factor * tl.load(q_scale_ptr)
            if k_scale_ptr is not None:
                k_scale = tl.load(k_scale_ptr + kv_head * stride_k_scale)
                cache_factor = cache_factor * k_scale
                if not SCALES_CACHE_ALONE:
                    factor = factor * k_scale
            wide_sequence = sequence.to(tl.int64)
            wide_head = kv_head.to(tl.int64)
            if q_desc is None:
                q_row_ptrs = (
                    q_ptr
                    + wide_sequence * stride_q_batch
                    + (first + rows).to(tl.int64)[:, None] * stride_q_token
                    + head.to(tl.int64) * stride_q_head
                )
                q = load_queries(q_row_ptrs, live_rows, 0, HEAD_DIM, BLOCK_D, DTYPE)
                q_rest = q
                if BLOCK_R > 0:
                    q_rest = load_queries(q_row_ptrs, live_rows, BLOCK_D, HEAD_DIM, BLOCK_R, DTYPE)
            else:
                # Dead rows are those of another sequence or head; nothing of theirs is stored.
                q_row = sequence * q_rows_batch + head * q_rows_head + first + row
                q = q_desc.load([q_row, head * q_columns_head])
                q_rest = q
                if BLOCK_R > 0:
                    q_rest = q_rest_desc.load([q_row, head * q_columns_head + BLOCK_D])
            queries = q, q_rest, factor
            k_row = sequence * k_rows_batch + first + kv_head * k_rows_head
            k_column = kv_head * k_columns_head
            v_row = k_row
            v_column = k_column
            if not SAME_TILES:
                v_row = sequence * v_rows_batch + first + kv_head * v_rows_head
                v_column = kv_head * v_columns_head
            new_source = (
                k_desc, k_rest_desc, v_desc,
                k_row, k_column, v_row, v_column,
                k_ptr + wide_sequence * stride_k_batch + first.to(tl.int64) * K_STRIDE_TOKEN
                + wide_head * stride_k_head,
                v_ptr + wide_sequence * stride_v_batch + first.to(tl.int64) * V_STRIDE_TOKEN
                + wide_head * stride_v_head,
                None,
            )  # fmt: skip
            if CAREFUL:
                new_source = None, None, None, 0, 0, 0, 0, new_source[7], new_source[8], None
            state = initial_state(BLOCK_M, BLOCK_V, SUMS)
            if k_cache_ptr is not None:
                context = cached_tokens(sequence, sequence < batch, context_lens_ptr, capacity)
                context = tl.where(length > 0, context, 0)
                cache_v_scale = cache_v_factor
                if SCALES_CACHE_ALONE and v_scale_ptr is not None:
                    cache_v_scale = cache_v_scale * tl.load(v_scale_ptr + kv_head * stride_v_scale)
                cache_queries = q, q_rest, cache_factor
                k_cache_head = k_cache_ptr + wide_head * stride_k_cache_head
                v_cache_head = v_cache_ptr + wide_head * stride_v_cache_head
                if PAGE_SIZE == 0:
                    k_cache_head += wide_sequence * stride_k_cache_batch
                    v_cache_head += wide_sequence * stride_v_cache_batch
                table_ptr = None if PAGE_SIZE == 0 else block_table_ptr + wide_sequence * stride_table
                cache_source = None, None, None, 0, 0, 0, 0, k_cache_head, v_cache_head, table_ptr
                state = attend_part(
                    state, cache_queries, cache_source, row, last_row, context, context, window, softcap_log2,
                    CACHE_LAYOUT, OPTIONS, CACHE_HAS_SOFTCAP,
                    CAREFUL_N if CAREFUL else BLOCK_N, CAREFUL, 1 if CAREFUL else NUM_STAGES, False,
                )  # fmt: skip
                if SCALES_CACHE_ALONE:
                    state = state[0] * cache_v_scale, state[1], state[2]
            state = attend_part(
                state, queries, new_source, row, last_row, tl.zeros_like(length), length, window,
                softcap_log2, LAYOUT, OPTIONS, HAS_SOFTCAP, CAREFUL_N if CAREFUL else BLOCK_N, CAREFUL,
                1 if CAREFUL else NUM_STAGES, WARP_SPECIALIZE and not CAREFUL,
            )  # fmt: skip
            if not CAREFUL:
                # NaN or infinity has reached the result, perhaps with a weight of 0.
                finite = (tl.abs(state[0]) < float("inf")) | (live_rows[:, None] == 0)
                found = tl.max(tl.where(finite, 0, 1), 1)
                not_finite = tl.maximum(not_finite, found if FLAG_BY_ROW else tl.max(found, 0))

            out, lse_log2 = normalized(state[0], state[2], tl.sum(state[1], 1))
            lse_log2 -= P_LOG2
            if sinks_ptr is not None:
                sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
                out, lse_log2 = _with_sink(out, lse_log2, tl.where(live_rows, sink, float("-inf")))
            out_factor = v_factor
            if not SCALES_CACHE_ALONE and v_scale_ptr is not None:
                out_factor = out_factor * tl.load(v_scale_ptr + kv_head * stride_v_scale)
            # Dead tokens of a padded sequence get 0 and -inf.
            out = tl.where(live_rows[:, None], out * out_factor, 0.0)
            stored_rows = live_rows if cu_seqlens_ptr is not None else rows < tokens
            if CAREFUL:
                stored_rows = stored_rows & again
            offs_v = tl.arange(0, BLOCK_V)
            out_rows = (first + rows).to(tl.int64)
            out_row_ptrs = out_ptr + wide_sequence * stride_out_batch + head.to(tl.int64) * stride_out_head
            out_row_ptrs = out_row_ptrs + out_rows[:, None] * stride_out_token
            mask = stored_rows[:, None]
            if BLOCK_V > V_HEAD_DIM:
                mask = mask & (offs_v < V_HEAD_DIM)[None, :]
            tl.store(out_row_ptrs + offs_v[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
            if CAREFUL:
                tl.debug_barrier()  # other threads have stored what is loaded next
                for column in range(0, V_HEAD_DIM, CAREFUL_COLUMNS):
                    added = tl.zeros((BLOCK_M, CAREFUL_COLUMNS), tl.float32)
                    if k_cache_ptr is not None:
                        added = not_finite_values(
                            added, cache_source, row, last_row, context, context, window, column,
                            CACHE_LAYOUT, OPTIONS, CAREFUL_N,
                        )  # fmt: skip
                        if SCALES_CACHE_ALONE:
                            added *= cache_v_scale
                    added = not_finite_values(
                        added, new_source, row, last_row, tl.zeros_like(length), length, window, column,
                        LAYOUT, OPTIONS, CAREFUL_N,
                    )  # fmt: skip
                    columns = column + tl.arange(0, CAREFUL_COLUMNS)
                    ptrs = out_row_ptrs + columns[None, :]
                    live = (live_rows & again)[:, None] & (columns < V_HEAD_DIM)[None, :]
                    sums = tl.load(ptrs, mask=live, other=0.0).to(tl.float32)
                    tl.store(ptrs, (sums + added * out_factor).to(out_ptr.dtype.element_ty), mask=live)
            if lse_ptr is not None:
                lse = tl.where(live_rows, lse_log2 * 0.6931471805599453, float("-inf"))
                lse_ptrs = lse_ptr + wide_sequence * stride_lse_batch + out_rows * q_heads + head
                tl.store(lse_ptrs, lse, mask=stored_rows)


@cached_launches
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
    return_lse: bool = False,
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    workspace: torch.Tensor | None = None,
    tiling: PrefillAttentionTiling | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of prompts over themselves and, for chunked prefill, over a cached prefix.

    Not differentiable. Results have the same bits every run. The launch depends only on shapes, never on
    lengths, which stay on the device: it can be captured in a CUDA graph.

    Args:
        q: [batch, tokens, q_heads, head_dim], or with `cu_seqlens` [tokens, q_heads, head_dim], bfloat16,
            float16, float32, float8_e4m3fn or float8_e5m2. head_dim from 1 to 256. Any
            strides, except 1 for head_dim.
        k: like `q`, with kv_heads heads; q_heads is a multiple of kv_heads, and query heads h group, ...,
            h group + group - 1 read key-value head h. Dtype of `q`.
        v: like `k`, with its own head_dim (the same limits): 192 and 128 for multi-head latent attention.
        cu_seqlens: [batch + 1] int32 or int64, ascending: sequence i has the tokens cu_seqlens[i] to
            cu_seqlens[i + 1] of `q`, `k` and `v`; a sequence may be empty. The output of tokens that belong
            to no sequence is not written.
        lengths: [batch] int32 or int64, of a padded `q`: live tokens of each sequence, clamped to 0..tokens.
            The others are dead: never read as keys, with output 0. None means that all are live.
        context_lens: [batch] int32 or int64: tokens of each cached prefix, clamped to 0..capacity. They do
            not count the tokens of `q`, which come after them, and whose keys come from `k` and `v`.
        k_cache: [batch, capacity, kv_heads, head_dim]; any strides, except 1 for head_dim. A paged KV cache,
            with `block_table`, is [pages, page_size, kv_heads, head_dim]. Dtype of `k`; if that is not
            float8, also float8_e4m3fn, float8_e5m2 or int8. Needs `v_cache` and `context_lens`.
        v_cache: like `k_cache`, with the head_dim of `v`.
        block_table: [batch, max_pages] int32 or int64: the pages of each prefix in order; capacity is
            max_pages x page_size. Entries past the live pages are never read; live entries must lie in
            0..pages - 1, which is not checked.
        causal: whether a token attends to no later one.
        scale: multiplies the scores; None means 1 / sqrt(head_dim).
        window: sliding window: a token attends to itself and the window - 1 tokens before it, and without
            `causal` to all later ones. Older tokens are not read. None means all.
        softcap: positive c: scores s become c tanh(s / c), after all scales.
        sinks: [q_heads], bfloat16, float16 or float32: attention sinks, one more logit per query head whose
            value is 0; it counts in the log-sum-exp.
        q_scale: dequantisation scale of `q`: a number, or float32 [] or [1].
        k_scale: dequantisation scale of the keys: a number, or float32 [], [1] or [kv_heads]. It multiplies
            those of the cache, and `k` if there is no cache or if it has the cache's dtype.
        v_scale: dequantisation scale of the values, likewise.
        return_lse: also return the log-sum-exp of the logits.
        out: output tensor: shape of `q` with the head_dim of `v`, dtype of `q` (bfloat16, float16 or float32
            if `q` is float8), stride 1 for head_dim, not overlapping the inputs. With `return_lse` it may be
            a pair, the second for the log-sum-exp, contiguous. None allocates; bfloat16 if `q` is float8.
        workspace: contiguous memory for the order of the row blocks, of any dtype, at least
            `prefill_attention_workspace_bytes` long and aligned to 16 bytes, not shared with a call that may
            run at the same time. With it and `out` (the pair, with `return_lse`) nothing is allocated. None
            allocates.
        tiling: tile sizes and CTA count; None means those of `choose_prefill_attention_tiling`. A variant
            that the GPU or the strides do not allow falls back to "pointers".

    Returns:
        Output, shape of `q` with the head_dim of `v`; with `return_lse` a pair with the natural log-sum-exp,
        float32, of the shape of `q` without head_dim. Dead tokens get 0 and -inf.

    Raises:
        ValueError: an argument has the wrong shape, strides, dtype, device, size or range; or tensors are on
            the CPU while Triton compiles its kernels.
    """
    arguments: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens": cu_seqlens,
        "lengths": lengths,
        "context_lens": context_lens,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": block_table,
        "causal": causal,
        "window": window,
        "sinks": sinks,
    }
    scales: dict[str, Any] = {
        "scale": scale,
        "softcap": softcap,
        "q_scale": q_scale,
        "k_scale": k_scale,
        "v_scale": v_scale,
    }
    checks.check_prefill_attention(**arguments, **scales, return_lse=return_lse, out=out, tiling=tiling)
    plan = plan_prefill_attention(**arguments, tiling=tiling, limits=gpu_limits(q.device))
    new, cached = _factors(plan, q, scales)
    workspace_bytes = plan.workspace_bytes
    if workspace is not None:
        checks.check_workspace(workspace, at_least_bytes=workspace_bytes, same_device_as=("q", q))
    elif workspace_bytes:
        workspace = allocate((workspace_bytes,), torch.uint8, q.device)
    out, lse = out if isinstance(out, tuple) else (out, None)
    if out is None:
        out = allocate((*q.shape[:-1], v.shape[-1]), checks.default_out_dtype(q), q.device)
    if return_lse and lse is None:
        lse = allocate(q.shape[:-1], torch.float32, q.device)
    _launch(plan, new, cached, **arguments, q_scale=q_scale, out=out, lse=lse, workspace=workspace)
    return out if lse is None else (out, lse)


def prefill_attention_workspace_bytes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any
) -> int:
    """Bytes of `workspace` that `prefill_attention` needs, from shapes alone.

    Takes the arguments of `prefill_attention` except `workspace`, and checks them alike.

    Raises:
        ValueError: as `prefill_attention`.
    """
    checks.check_prefill_attention(q=q, k=k, v=v, **options)
    planned = {name: value for name, value in options.items() if name in PLANNED_OPTIONS}
    plan = plan_prefill_attention(q=q, k=k, v=v, **planned, limits=gpu_limits(q.device))
    _factors(plan, q, options)
    return plan.workspace_bytes


def _factors(
    plan: PrefillAttentionPlan, q: torch.Tensor, options: dict[str, Any]
) -> tuple[DecodeFactors, DecodeFactors]:
    """Factors of the new tokens and of the cache."""
    scale, softcap, q_scale, k_scale, v_scale = map(
        options.get, ("scale", "softcap", "q_scale", "k_scale", "v_scale")
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(q_scale, int | float):
        scale *= q_scale
    bits = E4M3_BITS_FACTOR if plan.e4m3_bits else 1.0
    cached = decode_factors(
        head_dim=q.shape[-1],
        softcap=softcap,
        scale=scale * bits,
        k_scale=k_scale,
        v_scale=v_scale,
        cache_factor=E4M3_BITS_FACTOR if plan.e4m3_bits or plan.cache_e4m3_bits else 1.0,
    )
    if not plan.scales_cache_alone:
        return cached, cached
    new = decode_factors(head_dim=q.shape[-1], softcap=softcap, scale=scale, k_scale=None, v_scale=None)
    return new, cached


def _launch(
    plan: PrefillAttentionPlan,
    new: DecodeFactors,
    cached: DecodeFactors,
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    lengths: torch.Tensor | None,
    context_lens: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    block_table: torch.Tensor | None,
    causal: bool,
    window: int | None,
    sinks: torch.Tensor | None,
    q_scale: torch.Tensor | float | None,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    workspace: torch.Tensor | None,
) -> None:
    """Launches the order kernel, where lengths may differ, and the attention kernel."""
    if plan.e4m3_bits:
        q, k, v = (x.view(torch.uint8) for x in (q, k, v))
    if plan.cache_e4m3_bits and k_cache is not None and v_cache is not None:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    tiling, packed = plan.tiling, cu_seqlens is not None
    order = None
    if plan.workspace_bytes:
        assert workspace is not None  # noqa: S101  (the caller has allocated it)
        order = workspace.view(-1).view(torch.uint8)[: plan.workspace_bytes].view(torch.int32)
    lengths_arguments = {
        "cu_seqlens_ptr": cu_seqlens,
        "lengths_ptr": lengths,
        "context_lens_ptr": context_lens,
        "order_ptr": order,
        "batch": plan.batch,
        "tokens": plan.tokens,
        "capacity": plan.capacity,
        "CAUSAL": causal,
        "BLOCK_M": tiling.block_m,
        "ORDER_HEADER": ORDER_HEADER,
        "enable_fp_fusion": True,
    }
    queries, keys, values = plan.query_tiles, plan.key_tiles, plan.value_tiles
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        if order is not None:
            launch(
                order_kernel,
                (plan.batch, triton.cdiv(plan.row_blocks, ORDER_BLOCKS)),
                **lengths_arguments,
                most=plan.most_keys,
                PACKED=packed,
                ORDER_BLOCKS=ORDER_BLOCKS,
                ORDER_SEQUENCES=ORDER_SEQUENCES,
                num_warps=4,
            )
        launch(
            _prefill_attention_kernel,
            (plan.programs,),
            **lengths_arguments,
            q_ptr=q,
            k_ptr=k,
            v_ptr=v,
            q_desc=_descriptor(queries, plan.block_d),
            q_rest_desc=_descriptor(queries, plan.block_r),
            k_desc=_descriptor(keys, plan.block_d),
            k_rest_desc=_descriptor(keys, plan.block_r),
            v_desc=_descriptor(values, plan.block_v),
            k_cache_ptr=k_cache,
            v_cache_ptr=v_cache,
            block_table_ptr=block_table,
            out_ptr=out,
            lse_ptr=lse,
            sinks_ptr=sinks,
            q_scale_ptr=q_scale if isinstance(q_scale, torch.Tensor) else None,
            k_scale_ptr=cached.k_scale,
            v_scale_ptr=cached.v_scale,
            score_factor=new.score,
            cache_score_factor=cached.score,
            v_factor=new.value,
            cache_v_factor=cached.value,
            softcap_log2=new.softcap_log2 or cached.softcap_log2 or 0.0,
            window=plan.window,
            items=plan.items,
            q_heads=q.shape[-2],
            stride_q_batch=0 if packed else q.stride(0),
            stride_q_token=q.stride(-3),
            stride_q_head=q.stride(-2),
            stride_k_batch=0 if packed else k.stride(0),
            stride_k_head=k.stride(-2),
            stride_v_batch=0 if packed else v.stride(0),
            stride_v_head=v.stride(-2),
            stride_k_cache_batch=0 if k_cache is None else k_cache.stride(0),
            stride_k_cache_head=0 if k_cache is None else k_cache.stride(2),
            stride_v_cache_batch=0 if v_cache is None else v_cache.stride(0),
            stride_v_cache_head=0 if v_cache is None else v_cache.stride(2),
            stride_table=0 if block_table is None else block_table.stride(0),
            stride_out_batch=0 if packed else out.stride(0),
            stride_out_token=out.stride(-3),
            stride_out_head=out.stride(-2),
            stride_lse_batch=0 if packed else plan.tokens * q.shape[-2],
            stride_k_scale=_per_head(cached.k_scale),
            stride_v_scale=_per_head(cached.v_scale),
            q_rows_batch=0 if queries is None else queries.rows_batch,
            q_rows_head=0 if queries is None else queries.rows_head,
            q_columns_head=0 if queries is None else queries.columns_head,
            k_rows_batch=0 if keys is None else keys.rows_batch,
            k_rows_head=0 if keys is None else keys.rows_head,
            k_columns_head=0 if keys is None else keys.columns_head,
            v_rows_batch=0 if values is None else values.rows_batch,
            v_rows_head=0 if values is None else values.rows_head,
            v_columns_head=0 if values is None else values.columns_head,
            GROUP=q.shape[-2] // k.shape[-2],
            HEAD_DIM=q.shape[-1],
            V_HEAD_DIM=v.shape[-1],
            PAGE_SIZE=plan.page_size,
            K_STRIDE_TOKEN=k.stride(-3),
            V_STRIDE_TOKEN=v.stride(-3),
            K_CACHE_STRIDE_TOKEN=0 if k_cache is None else k_cache.stride(1),
            K_CACHE_STRIDE_PAGE=0 if k_cache is None or not plan.page_size else k_cache.stride(0),
            V_CACHE_STRIDE_TOKEN=0 if v_cache is None else v_cache.stride(1),
            V_CACHE_STRIDE_PAGE=0 if v_cache is None or not plan.page_size else v_cache.stride(0),
            HAS_WINDOW=window is not None,
            HAS_SOFTCAP=new.softcap_log2 is not None,
            CACHE_HAS_SOFTCAP=cached.softcap_log2 is not None,
            SCALES_CACHE_ALONE=plan.scales_cache_alone,
            DTYPE=plan.dot_dtype,
            P_LOG2=plan.p_log2,
            PROMOTED=plan.promoted,
            HALVES=plan.halves,
            SAME_TILES=plan.same_tiles,
            SIGNED=_may_be_negative(new, cached, q_scale),
            BLOCK_N=tiling.block_n,
            BLOCK_D=plan.block_d,
            BLOCK_R=plan.block_r,
            BLOCK_V=plan.block_v,
            SUMS=plan.lane_sums,
            CAREFUL_N=CAREFUL_TOKENS,
            CAREFUL_COLUMNS=CAREFUL_COLUMNS,
            NUM_STAGES=tiling.num_stages,
            WARP_SPECIALIZE=tiling.variant == "warp_specialized",
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            maxnreg=tiling.max_registers,
        )


def _descriptor(tiles: TmaTiles | None, columns: int) -> TensorDescriptor | None:
    """The TMA descriptor of tiles with so many columns; None where pointers load them, or without columns."""
    if tiles is None or not columns:
        return None
    return TensorDescriptor.from_tensor(tiles.matrix, [tiles.rows, columns])


def _may_be_negative(new: DecodeFactors, cached: DecodeFactors, q_scale: torch.Tensor | float | None) -> bool:
    """Whether a factor of the scores is negative, or on the device, where it may be."""
    on_device = cached.k_scale is not None or isinstance(q_scale, torch.Tensor)
    return on_device or min(new.score, cached.score) < 0.0


def _per_head(scale: torch.Tensor | None) -> int:
    """Stride of a scale: 0 if there is one for all heads."""
    return 0 if scale is None or scale.numel() == 1 else scale.stride(0)
