"""Decode attention over a contiguous or paged KV cache: flash-decoding with on-device work scheduling.

For each sequence of length L and query head h of the GQA group of key-value head g:
    out[h] = sum over t < L of softmax(scale q[h] . k[t, g]) v[t, g]
Operations: 4 L q_heads head_dim per query token. Minimum bytes: 2 L kv_heads head_dim cache elements, for
any number of query tokens and heads. Their ratio, 2 group query_tokens / bytes per element, is far below
the balance point of a GPU, so DRAM bandwidth is the bound: the kernel reads every live key and value once
and little else.

The rows of one dot are the query tokens and heads of a GQA group, padded to 16, the height of a tensor-core
instruction. If they do not fit in registers, they are split into blocks. A sequence, key-value head and row
block is a work item. The split-KV kernel is persistent: each CTA loops over the KV tiles that
`decode_schedule` assigns to it. A CTA that processes an item completely stores the result. Otherwise each CTA
stores a float32 partial with its log-sum-exp, and the combine kernel reduces the partials in a fixed order.

Online softmax in base 2: exp(x) = exp2(x log2(e)), with log2(e) and all score scales in one factor. KV
tiles that all rows attend to need no mask: they are the hot loop. The tokens at either end of an item are
processed in small masked tiles. 8-bit caches are multiplied as float16, which holds their values exactly.

This file is over 400 lines because the two kernels and the only function that launches them belong together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from . import decode_checks as checks
from .decode_plan import DecodePlan, plan_decode
from .decode_ragged_schedule import (
    clamped_length,
    ragged_chunk,
    ragged_queries,
    ragged_split_chunk,
    row_block_tokens,
    sequence_of_item,
)
from .decode_scales import CacheScale, as_bits, q_scale_strides
from .decode_schedule import LENGTHS_BLOCK, balanced_chunk, live_tokens, split_chunk
from .decode_tile import (
    attend,
    float16_powers,
    head_scales,
    largest_of_rows,
    normalized,
    query_values,
    signed_query,
    store_output,
    tokens_and_heads,
)
from .decode_tiling import COMBINE_PROGRAMS, EDGE_TOKENS, ITEM_COST_TILES, DecodeTiling
from .float8 import E4M3_BITS_FACTOR
from .gpu_limits import gpu_limits
from .interpreter import patch_interpreter
from .launch import allocate, cached_launches, launch
from .scale_factors import DecodeFactors, decode_factors

patch_interpreter()

_COMBINE_BLOCK_PARTIALS = 16
_LN_2 = math.log(2.0)
# Numbers that change from call to call: no kernel is compiled for those that are 1 or multiples of 16.
_NOT_SPECIALIZED = ("query_tokens", "stride_lse_batch", "stride_lse_token", "stride_lse_head")
_SCALES = ("scale", "softcap", "q_scale", "k_scale", "v_scale", "out_scale")


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _split_kv_kernel(  # noqa: C901, PLR0912, PLR0915  (one tile loop, read from top to bottom)
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    block_table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    partial_lse_ptr: tl.tensor,
    partial_counts_ptr: tl.tensor,
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
    cu_seqlens_ptr: tl.tensor,
    q_lens_ptr: tl.tensor,
    query_tokens: tl.tensor,
    stride_lse_batch: tl.tensor,
    stride_lse_token: tl.tensor,
    stride_lse_head: tl.tensor,
    lse_factor: tl.tensor,
    stride_k_scale_batch: tl.tensor,
    stride_v_scale_batch: tl.tensor,
    k_token_scale_ptr: tl.tensor,
    v_token_scale_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    softcap_ptr: tl.tensor,
    q_scale_ptr: tl.tensor,
    stride_q_scale_batch: tl.tensor,
    stride_q_scale_token: tl.tensor,
    stride_q_scale_group: tl.tensor,
    stride_q_scale_head: tl.tensor,
    out_scale_ptr: tl.tensor,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    K_STRIDE_TOKEN: tl.constexpr,
    K_STRIDE_PAGE: tl.constexpr,
    V_STRIDE_TOKEN: tl.constexpr,
    V_STRIDE_PAGE: tl.constexpr,
    K_SCALE_STRIDE_TOKEN: tl.constexpr,
    K_SCALE_STRIDE_PAGE: tl.constexpr,
    V_SCALE_STRIDE_TOKEN: tl.constexpr,
    V_SCALE_STRIDE_PAGE: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
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
    LATENT: tl.constexpr,
    SPLIT_K_SCALE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UNIT_TILES: tl.constexpr,
) -> None:
    """Processes one CTA's chunk of KV tiles: loops over its work items, and over the tiles of each item.

    Token and page strides are compile-time constants, so that addresses in a tile differ by constants. The
    host divides other cache strides by STRIDE_UNIT: the multiplication shows the compiler their alignment.
    """
    ROWS: tl.constexpr = GROUP * QUERY_TOKENS
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_G - 1) // BLOCK_G
    SLOT_ROWS: tl.constexpr = ROWS if ROW_BLOCKS == 1 else BLOCK_G
    COUNT_FIELDS: tl.constexpr = 3 if QUERY_TOKENS == 0 else 2
    UNIT_N: tl.constexpr = BLOCK_N * UNIT_TILES
    WIDE: tl.constexpr = LATENT and BLOCK_G >= 64  # warp-group products of sm_90 and sm_100
    EDGES: tl.constexpr = BLOCK_N // EDGE_N
    EDGE_STAGES: tl.constexpr = 2 if QUERY_TOKENS == 0 else NUM_STAGES  # more cost registers
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    items_per_sequence = kv_heads * ROW_BLOCKS
    if QUERY_TOKENS == 0:
        sequences = batch if cu_seqlens_ptr is None else batch + 1
        if NUM_SPLITS > 0:
            (
                first_item, chunk_first, stop_item, last_item, chunk_last, num_partials,
                at_sequence, sequence_item, last_sequence, last_sequence_item,
            ) = ragged_split_chunk(
                program, context_lens_ptr, cu_seqlens_ptr, q_lens_ptr, batch, sequences, query_tokens,
                capacity, window, kv_heads, GROUP, HAS_WINDOW, NUM_SPLITS, BLOCK_G, UNIT_N, LENGTHS_BLOCK,
            )  # fmt: skip
        else:
            (
                first_item, chunk_first, stop_item, last_item, chunk_last, num_partials,
                at_sequence, sequence_item, last_sequence, last_sequence_item,
            ) = ragged_chunk(
                program, programs, context_lens_ptr, cu_seqlens_ptr, q_lens_ptr, batch, sequences,
                query_tokens, capacity, window, kv_heads,
                GROUP, HAS_WINDOW, MIN_TILES, BLOCK_G, UNIT_N, ITEM_COST_TILES, LENGTHS_BLOCK,
            )  # fmt: skip
    elif NUM_SPLITS > 0:
        first_item, chunk_first, stop_item, last_item, chunk_last, num_partials = split_chunk(
            program, context_lens_ptr, capacity, window, items_per_sequence,
            QUERY_TOKENS, HAS_WINDOW, NUM_SPLITS, BLOCK_N,
        )  # fmt: skip
    else:
        first_item, chunk_first, stop_item, last_item, chunk_last, num_partials = balanced_chunk(
            program, programs, context_lens_ptr, batch, capacity, window, items_per_sequence,
            QUERY_TOKENS, HAS_WINDOW, MIN_TILES, BLOCK_N, ITEM_COST_TILES, LENGTHS_BLOCK,
        )  # fmt: skip
    if partial_counts_ptr is not None:
        counts_ptr = partial_counts_ptr + COUNT_FIELDS * program.to(tl.int64)
        if QUERY_TOKENS == 0:
            tl.store(counts_ptr, last_item - last_sequence_item)
            tl.store(counts_ptr + 2, last_sequence)
        else:
            tl.store(counts_ptr, last_item)
        tl.store(counts_ptr + 1, num_partials)

    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    for item in tl.range(first_item, stop_item, disable_licm=True):
        if QUERY_TOKENS == 0:
            at_sequence, sequence_item, row_blocks = sequence_of_item(
                item, at_sequence, sequence_item, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens, kv_heads,
                GROUP, BLOCK_G,
            )  # fmt: skip
            sequence = at_sequence.to(tl.int64)
            kv_head = (item - sequence_item) // row_blocks
            block = (item - sequence_item) % row_blocks
            rows = block * BLOCK_G + tl.arange(0, BLOCK_G)
            first_query, tokens, live = ragged_queries(
                at_sequence, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens
            )
            stored_rows = rows < tokens * GROUP
            live_rows = rows < live * GROUP
            length = clamped_length(context_lens_ptr, at_sequence, batch, capacity)
            begin, end, unmasked_end = row_block_tokens(
                block, length, live, window, GROUP, BLOCK_G, HAS_WINDOW
            )
            positions = tl.where(live_rows, length - live + rows // GROUP, -1)
        else:
            sequence = (item // items_per_sequence).to(tl.int64)
            kv_head = item % items_per_sequence // ROW_BLOCKS
            rows = item % ROW_BLOCKS * BLOCK_G + tl.arange(0, BLOCK_G)
            first_query = 0
            live_rows = rows < ROWS
            stored_rows = live_rows
            length = tl.load(context_lens_ptr + sequence)
            begin, end = live_tokens(length, capacity, window, QUERY_TOKENS, HAS_WINDOW)
            positions = end - QUERY_TOKENS + tokens_and_heads(rows, kv_head, GROUP, QUERY_TOKENS)[0]
            unmasked_end = tl.maximum(end - QUERY_TOKENS + 1, 0)
        # The chunk of this item, in units and then in tiles.
        first_unit = begin // UNIT_N
        last_unit = tl.cdiv(end, UNIT_N)
        chunk_begin = first_unit + chunk_first
        chunk_first *= 0  # of the chunk's other items
        chunk_end = tl.where(item == last_item, first_unit + chunk_last, last_unit)
        chunk_begin, chunk_end = chunk_begin * UNIT_TILES, chunk_end * UNIT_TILES

        heads = (kv_head * GROUP + rows % GROUP).to(tl.int64)
        scale, rest_factor, has_main = score_factor, None, True
        if scale_ptr is not None:
            scale = scale * tl.load(scale_ptr).to(tl.float32)
        if k_scale_ptr is not None:
            # Query tokens after those of the last sequence are an empty sequence.
            k_scale_offs = tl.minimum(sequence, batch - 1) * stride_k_scale_batch
            k_scale_offs += kv_head.to(tl.int64) * stride_k_scale
            main_scale = tl.load(k_scale_ptr + k_scale_offs).to(tl.float32)
            if SPLIT_K_SCALE:
                # The factor of all scores is the main part's scale, or the rest's if that is 0.
                rest_scale = tl.load(k_scale_ptr + stride_k_scale).to(tl.float32)
                has_main = main_scale != 0.0
                rest_factor = tl.where(has_main, rest_scale / main_scale, 1.0)
                main_scale = tl.where(has_main, main_scale, rest_scale)
            scale = scale * main_scale
        if softcap_ptr is not None:
            softcap = tl.load(softcap_ptr).to(tl.float32)
            scale, softcap_log2 = scale / softcap, softcap * 1.4426950408889634
        signs = scale  # of all rows, or of each
        factor = tl.full((BLOCK_G,), 1.0, tl.float32) * (scale if WIDE else tl.abs(scale))
        if q_scale_ptr is not None:
            q_scale_ptrs = (
                q_scale_ptr
                + sequence * stride_q_scale_batch
                + (first_query + rows // GROUP).to(tl.int64) * stride_q_scale_token
                + kv_head.to(tl.int64) * stride_q_scale_group
                + (rows % GROUP).to(tl.int64) * stride_q_scale_head
            )
            q_scales = tl.load(q_scale_ptrs, mask=live_rows, other=0.0).to(tl.float32)
            signs = (scale * q_scales)[:, None]
            factor *= q_scales if WIDE else tl.abs(q_scales)
        q_ptrs = (
            q_ptr
            + sequence * stride_q_batch
            + (first_query + rows // GROUP).to(tl.int64)[:, None] * stride_q_token
            + heads[:, None] * stride_q_head
        )
        # A scale of 0 gives scores of 0, though products of large numbers may be infinite.
        read = live_rows[:, None] & (signs != 0.0)
        live_d = (offs_d < HEAD_DIM)[None, :]
        q = tl.load(q_ptrs + offs_d[None, :], mask=read & live_d & has_main, other=0.0)
        q = query_values(q, k_ptr.dtype.element_ty)
        q_rest = q  # unused by keys without a rest
        if BLOCK_R > 0:
            offs_r = BLOCK_D + tl.arange(0, BLOCK_R)
            live_r = read & (offs_r < HEAD_DIM)[None, :]
            q_rest = tl.load(q_ptrs + offs_r[None, :], mask=live_r, other=0.0)
            q_rest = query_values(q_rest, k_ptr.dtype.element_ty)
        if not WIDE and q.dtype == tl.bfloat16 and k_ptr.dtype.element_ty.primitive_bitwidth == 8:
            largest = largest_of_rows(q)
            if BLOCK_R > 0:
                largest = tl.maximum(largest, largest_of_rows(q_rest))
            powers = float16_powers(largest)
            q = (q.to(tl.float32) / powers[:, None]).to(tl.float16)
            if BLOCK_R > 0:
                q_rest = (q_rest.to(tl.float32) / powers[:, None]).to(tl.float16)
            factor *= powers
        if not WIDE:  # there, unchanged queries stay in shared memory
            q = signed_query(q, signs)
            if BLOCK_R > 0:
                q_rest = signed_query(q_rest, signs)

        k_head = k_ptr + kv_head.to(tl.int64) * stride_k_head * STRIDE_UNIT
        v_head = v_ptr + kv_head.to(tl.int64) * stride_v_head * STRIDE_UNIT
        if PAGE_SIZE == 0:
            k_head += sequence * stride_k_batch * STRIDE_UNIT
            v_head += sequence * stride_v_batch * STRIDE_UNIT
        if LATENT:
            v_head = k_head
        table_ptr = None if PAGE_SIZE == 0 else block_table_ptr + sequence * stride_table
        k_token_scales = None
        if k_token_scale_ptr is not None:
            k_token_scales = head_scales(
                k_token_scale_ptr, sequence, kv_head, stride_k_scale_batch, stride_k_scale, PAGE_SIZE
            )
        v_token_scales = None
        if v_token_scale_ptr is not None:
            v_token_scales = head_scales(
                v_token_scale_ptr, sequence, kv_head, stride_v_scale_batch, stride_v_scale, PAGE_SIZE
            )

        acc = tl.zeros((BLOCK_G, BLOCK_V), tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        maximum = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        # Every row attends to tokens [unmasked_begin, unmasked_end).
        unmasked_begin = tl.maximum(end - window, 0) if HAS_WINDOW else begin
        hot_begin = tl.minimum(tl.maximum(tl.cdiv(unmasked_begin, BLOCK_N), chunk_begin), chunk_end)
        hot_end = tl.minimum(tl.maximum(unmasked_end // BLOCK_N, hot_begin), chunk_end)
        if HAS_WINDOW:
            acc, total, maximum = attend(
                tl.maximum(chunk_begin * EDGES, begin // EDGE_N), hot_begin * EDGES,
                begin, end, acc, total, maximum, q, factor, positions,
                k_head, v_head, table_ptr, window, softcap_log2,
                HEAD_DIM, V_HEAD_DIM, QUERY_TOKENS, PAGE_SIZE,
                K_STRIDE_TOKEN, K_STRIDE_PAGE, V_STRIDE_TOKEN, V_STRIDE_PAGE,
                HAS_WINDOW, HAS_SOFTCAP, PRECISION,
                BLOCK_G, BLOCK_D, BLOCK_V, EDGE_N, True, EDGE_STAGES, q_rest, rest_factor, LATENT, BLOCK_R,
                k_token_scales, v_token_scales,
                K_SCALE_STRIDE_TOKEN, K_SCALE_STRIDE_PAGE, V_SCALE_STRIDE_TOKEN, V_SCALE_STRIDE_PAGE,
            )  # fmt: skip
        acc, total, maximum = attend(
            hot_begin, hot_end, begin, end, acc, total, maximum, q, factor, positions,
            k_head, v_head, table_ptr, window, softcap_log2,
            HEAD_DIM, V_HEAD_DIM, QUERY_TOKENS, PAGE_SIZE,
            K_STRIDE_TOKEN, K_STRIDE_PAGE, V_STRIDE_TOKEN, V_STRIDE_PAGE,
            HAS_WINDOW, HAS_SOFTCAP, PRECISION,
            BLOCK_G, BLOCK_D, BLOCK_V, BLOCK_N, False, NUM_STAGES, q_rest, rest_factor, LATENT, BLOCK_R,
            k_token_scales, v_token_scales,
            K_SCALE_STRIDE_TOKEN, K_SCALE_STRIDE_PAGE, V_SCALE_STRIDE_TOKEN, V_SCALE_STRIDE_PAGE,
        )  # fmt: skip
        if WIDE:
            # 0 again: the addresses of the last tiles take no registers before.
            k_head += (chunk_end < chunk_begin).to(tl.int32) * 16
            v_head = k_head
        acc, total, maximum = attend(
            hot_end * EDGES, tl.minimum(chunk_end * EDGES, tl.cdiv(end, EDGE_N)),
            begin, end, acc, total, maximum, q, factor, positions,
            k_head, v_head, table_ptr, window, softcap_log2,
            HEAD_DIM, V_HEAD_DIM, QUERY_TOKENS, PAGE_SIZE,
            K_STRIDE_TOKEN, K_STRIDE_PAGE, V_STRIDE_TOKEN, V_STRIDE_PAGE,
            HAS_WINDOW, HAS_SOFTCAP, PRECISION,
            BLOCK_G, BLOCK_D, BLOCK_V, EDGE_N, True, EDGE_STAGES, q_rest, rest_factor, LATENT, BLOCK_R,
            k_token_scales, v_token_scales,
            K_SCALE_STRIDE_TOKEN, K_SCALE_STRIDE_PAGE, V_SCALE_STRIDE_TOKEN, V_SCALE_STRIDE_PAGE,
        )  # fmt: skip

        if QUERY_TOKENS == 0:
            # Rows past the live query tokens attended to tiles without a mask.
            acc = tl.where(live_rows[:, None], acc, 0.0)
            total = tl.where(live_rows, total, 0.0)
        out, lse_log2 = normalized(acc, maximum, total)
        if QUERY_TOKENS > 0:
            # What follows from the item is computed again, so that it takes no registers in the loop. The
            # compiler does not know that 0 is added, and so does not keep the first results.
            same_item = item + (chunk_end < chunk_begin).to(tl.int32)
            sequence = (same_item // items_per_sequence).to(tl.int64)
            kv_head = same_item % items_per_sequence // ROW_BLOCKS
            rows = same_item % ROW_BLOCKS * BLOCK_G + tl.arange(0, BLOCK_G)
            stored_rows = rows < ROWS
            positions = end - QUERY_TOKENS + tokens_and_heads(rows, kv_head, GROUP, QUERY_TOKENS)[0]
        begun = chunk_begin == begin // UNIT_N * UNIT_TILES
        finished = chunk_end == tl.cdiv(end, UNIT_N) * UNIT_TILES
        if begun & finished:
            store_output(
                out, lse_log2, rows, stored_rows, sequence, kv_head, positions,
                out_ptr, lse_ptr, sinks_ptr, v_scale_ptr, v_factor,
                stride_out_batch, stride_out_token, stride_out_head, stride_v_scale,
                first_query, stride_lse_batch, stride_lse_token, stride_lse_head, lse_factor,
                GROUP, V_HEAD_DIM, stride_v_scale_batch, out_scale_ptr, batch, QUERY_TOKENS,
            )  # fmt: skip
        elif partial_ptr is not None:
            slot = program.to(tl.int64)
            if NUM_SPLITS == 0:
                slot += tl.where(begun, 0, programs)
            slot_rows = tl.arange(0, BLOCK_G)
            offs = slot_rows[:, None] * V_HEAD_DIM + offs_v[None, :]
            stored = stored_rows[:, None] & (offs_v < V_HEAD_DIM)[None, :]
            tl.store(partial_ptr + slot * (SLOT_ROWS * V_HEAD_DIM) + offs, out, mask=stored)
            tl.store(partial_lse_ptr + slot * SLOT_ROWS + slot_rows, lse_log2, mask=stored_rows)


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _combine_kernel(  # noqa: PLR0915  (one loop, read from top to bottom)
    partial_ptr: tl.tensor,
    partial_lse_ptr: tl.tensor,
    partial_counts_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    v_factor: tl.tensor,
    batch: tl.tensor,
    kv_heads: tl.tensor,
    capacity: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_token: tl.tensor,
    stride_out_head: tl.tensor,
    stride_v_scale: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    q_lens_ptr: tl.tensor,
    query_tokens: tl.tensor,
    stride_lse_batch: tl.tensor,
    stride_lse_token: tl.tensor,
    stride_lse_head: tl.tensor,
    lse_factor: tl.tensor,
    stride_v_scale_batch: tl.tensor,
    out_scale_ptr: tl.tensor,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    COMBINE_ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Combines the partials of COMBINE_ROWS rows of the item that one split-KV CTA began and did not finish.

    The order of the reduction is fixed, BLOCK_S partials at a time: the result has the same bits every run.
    """
    ROWS: tl.constexpr = GROUP * QUERY_TOKENS
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_G - 1) // BLOCK_G
    SLOT_ROWS: tl.constexpr = ROWS if ROW_BLOCKS == 1 else BLOCK_G
    COUNT_FIELDS: tl.constexpr = 3 if QUERY_TOKENS == 0 else 2
    first_program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    item = tl.load(partial_counts_ptr + COUNT_FIELDS * first_program)
    num_partials = tl.load(partial_counts_ptr + COUNT_FIELDS * first_program + 1)
    first_row = tl.program_id(1) * COMBINE_ROWS
    if QUERY_TOKENS == 0:
        sequence = tl.load(partial_counts_ptr + COUNT_FIELDS * first_program + 2)
        first_query, tokens, live_queries = ragged_queries(
            sequence, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens
        )
        item_blocks = tl.maximum(tl.cdiv(tokens * GROUP, BLOCK_G), 1)
        kv_head, block = item // item_blocks, item % item_blocks
        item_rows = tl.minimum(tokens * GROUP - block * BLOCK_G, BLOCK_G)
    else:
        sequence = item // (kv_heads * ROW_BLOCKS)
        kv_head, block = item % (kv_heads * ROW_BLOCKS) // ROW_BLOCKS, item % ROW_BLOCKS
        item_rows = tl.minimum(ROWS - block * BLOCK_G, SLOT_ROWS)
        first_query = 0
    last_row = tl.where(num_partials > 0, tl.minimum(first_row + COMBINE_ROWS, item_rows), first_row)

    offs_v = tl.arange(0, BLOCK_V)
    live_v = offs_v < V_HEAD_DIM
    for row in range(first_row, last_row):
        maximum = tl.full((1,), float("-inf"), tl.float32)
        total = tl.zeros((1,), tl.float32)
        acc = tl.zeros((1, BLOCK_V), tl.float32)
        for first in range(0, num_partials, BLOCK_S):
            index = first + tl.arange(0, BLOCK_S)
            live = index < num_partials
            slots = first_program + index
            if NUM_SPLITS == 0:
                # The first partial is in its CTA's begun slot, the others in continued slots.
                slots += tl.where(index == 0, 0, programs)
            offs = slots * SLOT_ROWS + row
            lses = tl.load(partial_lse_ptr + offs, mask=live, other=float("-inf"))  # [BLOCK_S]
            partials = tl.load(
                partial_ptr + offs[:, None] * V_HEAD_DIM + offs_v[None, :],
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
        out, lse_log2 = normalized(acc, maximum, total)
        rows = block * BLOCK_G + row + tl.arange(0, 1)
        if QUERY_TOKENS == 0:
            length = clamped_length(context_lens_ptr, sequence, batch, capacity)
            positions = tl.where(rows // GROUP < live_queries, length - live_queries + rows // GROUP, -1)
        else:
            _, end = live_tokens(tl.load(context_lens_ptr + sequence), capacity, 0, QUERY_TOKENS, False)
            positions = end - QUERY_TOKENS + tokens_and_heads(rows, kv_head, GROUP, QUERY_TOKENS)[0]
        store_output(
            out, lse_log2, rows, rows >= 0, sequence, kv_head, positions,
            out_ptr, lse_ptr, sinks_ptr, v_scale_ptr, v_factor,
            stride_out_batch, stride_out_token, stride_out_head, stride_v_scale,
            first_query, stride_lse_batch, stride_lse_token, stride_lse_head, lse_factor,
            GROUP, V_HEAD_DIM, stride_v_scale_batch, out_scale_ptr, batch, QUERY_TOKENS,
        )  # fmt: skip


@cached_launches
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
    out_dtype: torch.dtype | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    lse_layout: str = "tokens-first",
    lse_base: str | int = "e",
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    workspace: torch.Tensor | None = None,
    tiling: DecodeTiling | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of the last query tokens of each sequence over the live part of its KV cache.

    One query token a sequence is a decode step, a few are speculative decoding, many are a chunk of a prompt;
    with `cu_seqlens` or `q_lens` the sequences of one call may have different numbers of them.

    Not differentiable. Results have the same bits every run. The launch depends only on shapes and
    capacity, never on the lengths, which stay on the device: it can be captured in a CUDA graph.

    Args:
        q: [batch, q_heads, head_dim] or [batch, query_tokens, q_heads, head_dim]; packed, with `cu_seqlens`,
            [tokens, q_heads, head_dim]. bfloat16, float16, float32, float8_e4m3fn, float8_e5m2 or int8;
            head_dim 1 to 576, with stride 1 (multiples of 8 are fast). The query tokens are the last ones
            of the sequence; attention among them is causal.
        k_cache: [batch, capacity, kv_heads, head_dim]; any strides, except 1 for head_dim: tokens
            or heads may come first in memory. A paged KV cache, with `block_table`, is
            [pages, page_size, kv_heads, head_dim]. float8_e4m3fn, float8_e5m2, int8, or the
            dtype of `q`, under 8-bit queries any of the three floats. q_heads is kv_heads times the
            GQA group size, 1 to 128; query heads h group, ..., h group + group - 1 read key-value head h.
        v_cache: like `k_cache`, with its own head_dim, 1 to 512, and strides. A view of the first
            elements of each key (multi-head latent attention: `k_cache[..., :512]`) is not loaded again.
        context_lens: [batch] int32 or int64: live tokens of each cache, those of `q` included, clamped to
            0..capacity. Tokens past them are never read.
        cu_seqlens: [batch + 1] int32 or int64: sequence b has the packed query tokens cu_seqlens[b] to
            cu_seqlens[b + 1] - 1, any number of them, also none. Ascending from 0, which is not checked;
            clamped to 0..tokens. Tokens of `q` past the last sequence give output 0 and -inf.
        q_lens: [batch] int32 or int64: how many of the query tokens of each sequence are live, the first ones
            in `q`; clamped to 0..query_tokens. The others are never read, and give output 0 and -inf.
        block_table: [batch, max_pages] int32 or int64: the pages of each sequence in order;
            capacity = max_pages x page_size. Entries past the live pages are never read; live
            entries must lie in 0..pages - 1, which is not checked.
        scale: multiplies the scores, at most 2.36e38 in magnitude, with number `q_scale` and `k_scale` too;
            None means 1 / sqrt(head_dim). This and the following scales may be tensors, float32, bfloat16
            or float16, on the device of `q`: they are read there, so that a CUDA graph may change them,
            and their values are not checked. This, `softcap` and `out_scale`: number, [] or [1].
        window: sliding window: tokens that a query token attends to, itself the last (FlashAttention's and
            FlashInfer's left + 1); older tokens are not read. None means all (-1 there).
        softcap: positive c, at most 2.36e38 and at least 3e-39 times `scale`: scores s become
            c tanh(s / c), after `scale`, `q_scale` and `k_scale`.
        sinks: [q_heads], bfloat16, float16 or float32: attention sinks, one more logit per query head
            whose value is 0; it counts in the log-sum-exp.
        q_scale: dequantisation scale of `q`: a number, [], [1], [q_heads], [kv_heads], [batch, kv_heads],
            or shape of `q` without head_dim (per token and head).
        k_scale: dequantisation scale of `k_cache`: a number, [], [1], [kv_heads], [batch, kv_heads], or
            shape of `k_cache` without head_dim (per token and head; any strides). Scales of dead
            tokens are never read. Of a latent cache with one KV head, whose values are a power of two of
            elements and at least half of the key, also [2]: of the values' elements, and of the rest.
        v_scale: dequantisation scale of `v_cache`, likewise; without it, the first of a `k_scale` of [2].
        out_scale: positive; the output is divided by it, so that it is the dequantisation scale of a float8
            output.
        out_dtype: bfloat16, float16, float32, or float8_e4m3fn or float8_e5m2, which saturate: results that
            are too large become the largest value. None means the dtype of `out`, else of `q`, under
            8-bit queries of the cache, and bfloat16 if that is 8-bit too.
        num_splits: split-KV: split each sequence into this many chunks by its own length, so that
            its result does not depend on the rest of the batch. None means chunks of equal size
            across the batch.
        return_lse: also return the log-sum-exp of the logits.
        lse_layout: "tokens-first", the shape of `q` without head_dim; or "heads-first", in which heads come
            before tokens: [batch, q_heads, query_tokens], [q_heads, batch], or packed [q_heads, tokens].
        lse_base: "e" for the natural logarithm, or 2.
        out: output tensor: shape of `q` with the head_dim of `v_cache`, `out_dtype`, stride 1 for
            head_dim, not overlapping the inputs. With `return_lse` it may be a pair, the second for
            the log-sum-exp, contiguous. None allocates.
        workspace: contiguous memory for split-KV partials, of any dtype, at least
            `decode_attention_workspace_bytes` long and aligned to 16 bytes, not shared with a call
            that may run at the same time. With it and `out` (the pair, with `return_lse`) nothing is
            allocated. None allocates.
        tiling: tile sizes and CTA count; None means those of `choose_decode_tiling`.

    Returns:
        Output, shape of `q` with the head_dim of `v_cache`, `out_dtype`; with `return_lse` a pair with the
        log-sum-exp, float32, natural and [batch, (query_tokens,) q_heads] unless `lse_layout` and `lse_base`
        say otherwise. An empty batch gives an empty result; a sequence of length 0, or a query token before
        its start, gives output 0 and -inf.

    Raises:
        ValueError: an argument has the wrong shape, strides, dtype, device, size or range; or tensors are
            on the CPU while Triton compiles its kernels.
    """
    arguments: dict[str, Any] = {
        "q": q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "context_lens": context_lens,
        "cu_seqlens": cu_seqlens,
        "q_lens": q_lens,
        "block_table": block_table,
        "window": window,
        "sinks": sinks,
    }
    scales: dict[str, Any] = {
        "scale": scale, "softcap": softcap, "q_scale": q_scale,
        "k_scale": k_scale, "v_scale": v_scale, "out_scale": out_scale,
    }  # fmt: skip
    checks.check_decode_attention(
        **arguments,
        **scales,
        out_dtype=out_dtype,
        num_splits=num_splits,
        return_lse=return_lse,
        lse_layout=lse_layout,
        lse_base=lse_base,
        out=out,
        tiling=tiling,
    )
    plan = plan_decode(
        q, k_cache, v_cache, block_table, num_splits, tiling, gpu_limits(q.device), cu_seqlens, q_lens
    )
    factors = _factors(plan, q, k_cache.shape[2], scales)
    workspace_bytes = plan.workspace_bytes
    if workspace is not None:
        checks.check_workspace(workspace, at_least_bytes=workspace_bytes, same_device_as=("q", q))
    elif workspace_bytes:
        workspace = allocate((workspace_bytes,), torch.uint8, q.device)
    out, lse = out if isinstance(out, tuple) else (out, None)
    if out is None:
        dtype = out_dtype or checks.default_decode_dtype(q, v_cache)
        out = allocate((*q.shape[:-1], v_cache.shape[-1]), dtype, q.device)
    if return_lse and lse is None:
        lse = allocate(checks.lse_shape(q, lse_layout), torch.float32, q.device)
    if q.numel():
        token_lses = lse if lse is None or lse_layout == "tokens-first" else lse.transpose(-1, -2)
        lse_factor = _LN_2 if lse_base == "e" else 1.0
        _launch(
            plan, factors, **arguments, out=out, lse=token_lses, lse_factor=lse_factor, workspace=workspace
        )
    return out if lse is None else (out, lse)


def decode_attention_workspace_bytes(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    **options: Any,
) -> int:
    """Bytes of `workspace` that `decode_attention` needs, from shapes alone.

    Takes the arguments of `decode_attention` except `workspace`, and checks them alike.

    Raises:
        ValueError: as `decode_attention`.
    """
    checks.check_decode_attention(q=q, k_cache=k_cache, v_cache=v_cache, context_lens=context_lens, **options)
    block_table, num_splits, tiling, cu_seqlens, q_lens = map(
        options.get, ("block_table", "num_splits", "tiling", "cu_seqlens", "q_lens")
    )
    plan = plan_decode(
        q, k_cache, v_cache, block_table, num_splits, tiling, gpu_limits(q.device), cu_seqlens, q_lens
    )
    _factors(plan, q, k_cache.shape[2], options)
    return plan.workspace_bytes


def _factors(plan: DecodePlan, q: torch.Tensor, kv_heads: int, options: dict[str, Any]) -> DecodeFactors:
    return decode_factors(
        head_dim=q.shape[-1],
        split_k_scale=plan.latent and kv_heads == 1 and plan.blocks.d == plan.v_head_dim,
        cache_factor=E4M3_BITS_FACTOR if plan.cache_e4m3_bits else 1.0,
        **{name: options.get(name) for name in _SCALES},
    )


def _launch(
    plan: DecodePlan,
    factors: DecodeFactors,
    *,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    q_lens: torch.Tensor | None,
    block_table: torch.Tensor | None,
    window: int | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    lse_factor: float,
    workspace: torch.Tensor | None,
) -> None:
    """Launches the split-KV kernel and, if it may leave partials, the combine kernel.

    `lse` has the shape of `q` without head_dim.
    """
    tiling, kv_heads = plan.tiling, k_cache.shape[2]
    tensors, softcap_log2 = factors.tensors, factors.softcap_log2
    k_scale, v_scale = (
        CacheScale.of(factors.k_scale, plan),
        CacheScale.of(factors.v_scale, plan),
    )
    if plan.lacks_e4m3:
        q, k_cache, v_cache, out = map(as_bits, (q, k_cache, v_cache, out))
    partials = partial_lses = partial_counts = None
    if plan.slots:
        assert workspace is not None  # noqa: S101  (the caller has allocated it)
        partials, partial_lses, partial_counts = plan.workspace_views(workspace)
    unit = _stride_unit(k_cache, v_cache)
    packed = cu_seqlens is not None
    out_batch, out_token, out_head = _row_strides(out, -2, packed=packed)
    lse_batch, lse_token, lse_head = (0, 0, 0) if lse is None else _row_strides(lse, -1, packed=packed)
    common = {
        "context_lens_ptr": context_lens,
        "out_ptr": out,
        "lse_ptr": lse,
        "partial_ptr": partials,
        "partial_lse_ptr": partial_lses,
        "partial_counts_ptr": partial_counts,
        "sinks_ptr": sinks,
        "v_scale_ptr": None if v_scale.per_token else v_scale.tensor,
        "v_factor": factors.value,
        "cu_seqlens_ptr": cu_seqlens,
        "q_lens_ptr": q_lens,
        "query_tokens": plan.most_query_tokens,
        "lse_factor": lse_factor,
        "batch": context_lens.shape[0],
        "kv_heads": kv_heads,
        "capacity": plan.capacity,
        "stride_out_batch": out_batch,
        "stride_out_token": out_token,
        "stride_out_head": out_head,
        "stride_lse_batch": lse_batch,
        "stride_lse_token": lse_token,
        "stride_lse_head": lse_head,
        "stride_v_scale": v_scale.stride_head,
        "stride_v_scale_batch": v_scale.stride_batch,
        "out_scale_ptr": tensors.get("out_scale"),
        "GROUP": plan.group,
        "QUERY_TOKENS": plan.query_tokens,
        "V_HEAD_DIM": plan.v_head_dim,
        "NUM_SPLITS": tiling.num_splits,
        "BLOCK_G": tiling.block_g,
        "BLOCK_V": plan.blocks.v,
        "enable_fp_fusion": True,
    }
    q_batch, q_token, q_head = _row_strides(q, -2, packed=packed)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        launch(
            _split_kv_kernel,
            (plan.programs,),
            **common,
            q_ptr=q,
            k_ptr=k_cache,
            v_ptr=v_cache,
            block_table_ptr=block_table,
            k_scale_ptr=None if k_scale.per_token else k_scale.tensor,
            score_factor=factors.score,
            softcap_log2=0.0 if softcap_log2 is None else softcap_log2,
            window=0 if window is None else min(window, plan.capacity),
            stride_q_batch=q_batch,
            stride_q_token=q_token,
            stride_q_head=q_head,
            stride_k_batch=k_cache.stride(0) // unit,
            stride_k_head=k_cache.stride(2) // unit,
            stride_v_batch=v_cache.stride(0) // unit,
            stride_v_head=v_cache.stride(2) // unit,
            stride_table=0 if block_table is None else block_table.stride(0),
            stride_k_scale=k_scale.stride_head,
            stride_k_scale_batch=k_scale.stride_batch,
            k_token_scale_ptr=k_scale.tensor if k_scale.per_token else None,
            v_token_scale_ptr=v_scale.tensor if v_scale.per_token else None,
            scale_ptr=tensors.get("scale"),
            softcap_ptr=tensors.get("softcap"),
            q_scale_ptr=tensors.get("q_scale"),
            **q_scale_strides(tensors.get("q_scale"), q, plan.group, packed=packed),
            HEAD_DIM=q.shape[-1],
            PAGE_SIZE=plan.page_size,
            K_STRIDE_TOKEN=k_cache.stride(1),
            K_STRIDE_PAGE=k_cache.stride(0) if plan.page_size else 0,
            V_STRIDE_TOKEN=v_cache.stride(1),
            V_STRIDE_PAGE=v_cache.stride(0) if plan.page_size else 0,
            K_SCALE_STRIDE_TOKEN=k_scale.stride_token,
            K_SCALE_STRIDE_PAGE=k_scale.stride_page,
            V_SCALE_STRIDE_TOKEN=v_scale.stride_token,
            V_SCALE_STRIDE_PAGE=v_scale.stride_page,
            STRIDE_UNIT=unit,
            HAS_WINDOW=window is not None,
            HAS_SOFTCAP=softcap_log2 is not None or "softcap" in tensors,
            PRECISION="ieee",
            MIN_TILES=tiling.min_tiles,
            ITEM_COST_TILES=ITEM_COST_TILES,
            LENGTHS_BLOCK=LENGTHS_BLOCK,
            BLOCK_D=plan.blocks.d,
            BLOCK_N=tiling.block_n,
            EDGE_N=EDGE_TOKENS,
            NUM_STAGES=tiling.num_stages,
            LATENT=plan.latent,
            SPLIT_K_SCALE=factors.split_k_scale,
            BLOCK_R=plan.blocks.r,
            UNIT_TILES=plan.unit_tiles,
            num_warps=tiling.num_warps,
            maxnreg=tiling.max_registers,
            num_stages=tiling.num_stages,
        )
        if plan.slots:
            combine_rows = math.ceil(plan.slot_rows / COMBINE_PROGRAMS)
            launch(
                _combine_kernel,
                (plan.programs, math.ceil(plan.slot_rows / combine_rows)),
                **common,
                COMBINE_ROWS=combine_rows,
                BLOCK_S=_COMBINE_BLOCK_PARTIALS,
                num_warps=4,
                maxnreg=128,  # more than it needs: without a limit the compiler may spill to use fewer
            )


def _row_strides(tensor: torch.Tensor, heads: int, *, packed: bool) -> tuple[int, int, int]:
    """Strides of sequences, query tokens and heads of a tensor whose dimension `heads` has the heads."""
    if tensor.dim() + heads == 2:  # sequences, query tokens and heads
        return tensor.stride(0), tensor.stride(1), tensor.stride(heads)
    per_row = tensor.stride(0)
    return (0, per_row, tensor.stride(heads)) if packed else (per_row, 0, tensor.stride(heads))


def _stride_unit(*caches: torch.Tensor) -> int:
    """8 if every cache stride is a multiple of 8, else 1.

    Triton specialises arguments only on divisibility by 16. But the 16 bytes of cp.async are only 8 elements
    of 2 bytes, and strides of a head_dim like 40 or 72 are only multiples of 8.
    """
    return 8 if all(stride % 8 == 0 for cache in caches for stride in cache.stride()[:3]) else 1
