"""Decode attention: one query token a sequence against its key-value cache.

For each sequence of length L and query head h of the group of key-value head g:
    out[h] = sum over t < L of softmax(scale q[h] . k[t, g]) v[t, g]
Operations: 4 L q_heads head_dim a sequence. Bytes at least: 2 L kv_heads head_dim elements of
cache. Their ratio is 2 q_heads / kv_heads operations an element, far below what a GPU balances:
memory bandwidth is the bound, so every live key and value is read once and nothing else of size.

The split kernel gives one program a key-value head of a sequence and one share of its context. The
query heads of a group share each load, as the rows of one matrix product (padded to 16, the height
of a matrix instruction; a group too large for the registers takes several programs). A share's
result is kept in float32 relative to its own maximum score, and the merge kernel adds the shares; a
single share is written out at once. Scores are in base 2: exp(x) = exp2(x log2(e)), with log2(e)
folded into the scale.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import checks
from .interpreter import mend_interpreter
from .tiling import DecodeTiling, choose_decode_tiling, gpu_limits

mend_interpreter()

_LOG2_E = 1.0 / math.log(2.0)
_MERGE_SPLITS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _live_range(
    context_lens_ptr: tl.tensor,
    sequence: tl.tensor,
    capacity: tl.tensor,
    split: tl.tensor,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Tokens [begin, end) of a split, and how many splits of this sequence have any."""
    length = tl.load(context_lens_ptr + sequence)
    length = tl.minimum(tl.maximum(length, 0), capacity)
    tiles = tl.cdiv(length, BLOCK_N)
    tiles_per_split = tl.maximum(tl.cdiv(tiles, NUM_SPLITS), 1)
    begin = split * tiles_per_split * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, length)
    return begin, end, tl.cdiv(tiles, tiles_per_split)


@triton.jit  # type: ignore[untyped-decorator]
def _split_kernel(  # noqa: PLR0915  (one loop, read from top to bottom)
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    block_table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    max_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    scale_log2: tl.tensor,
    kv_heads: tl.tensor,
    capacity: tl.tensor,
    stride_q_batch: tl.tensor,
    stride_q_head: tl.tensor,
    stride_k_block: tl.tensor,
    stride_k_token: tl.tensor,
    stride_k_head: tl.tensor,
    stride_v_block: tl.tensor,
    stride_v_token: tl.tensor,
    stride_v_head: tl.tensor,
    stride_table: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_head: tl.tensor,
    stride_out_split: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STRIDE_UNIT: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One group of query heads over one share of a sequence's context.

    A block of the cache is a page (PAGE_SIZE tokens), or a whole sequence where PAGE_SIZE is 0.
    Cache strides come divided by STRIDE_UNIT: the product tells the compiler their alignment.
    """
    # Neighbours read the same keys and values, or those next to them in a cache with tokens first.
    GROUP_BLOCKS: tl.constexpr = (GROUP + BLOCK_G - 1) // BLOCK_G
    group_block = tl.program_id(0) % GROUP_BLOCKS
    kv_head = (tl.program_id(0) // GROUP_BLOCKS) % kv_heads
    split = (tl.program_id(0) // GROUP_BLOCKS // kv_heads) % NUM_SPLITS
    sequence = (tl.program_id(0) // GROUP_BLOCKS // kv_heads // NUM_SPLITS).to(tl.int64)
    begin, end, live_splits = _live_range(context_lens_ptr, sequence, capacity, split, NUM_SPLITS, BLOCK_N)

    offs_g = group_block * BLOCK_G + tl.arange(0, BLOCK_G)
    offs_d = tl.arange(0, BLOCK_D)
    offs_n = tl.arange(0, BLOCK_N)
    live_g = offs_g < GROUP
    live_d = offs_d < HEAD_DIM
    heads = (kv_head * GROUP + offs_g).to(tl.int64)
    live_gd = live_g[:, None] & live_d[None, :]
    q_ptrs = q_ptr + sequence * stride_q_batch + heads[:, None] * stride_q_head + offs_d[None, :]
    q = tl.load(q_ptrs, mask=live_gd, other=0.0)  # [BLOCK_G, BLOCK_D]

    k_head = k_ptr + kv_head.to(tl.int64) * stride_k_head * STRIDE_UNIT
    v_head = v_ptr + kv_head.to(tl.int64) * stride_v_head * STRIDE_UNIT
    if PAGE_SIZE == 0:
        k_head += sequence * stride_k_block * STRIDE_UNIT
        v_head += sequence * stride_v_block * STRIDE_UNIT

    running_max = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    running_sum = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_N):
        tokens = start + offs_n
        live_n = tokens < end
        if PAGE_SIZE == 0:
            k_offs = tokens.to(tl.int64) * stride_k_token * STRIDE_UNIT
            v_offs = tokens.to(tl.int64) * stride_v_token * STRIDE_UNIT
        else:
            page_ptrs = block_table_ptr + sequence * stride_table + tokens // PAGE_SIZE
            pages = tl.load(page_ptrs, mask=live_n, other=0).to(tl.int64)
            slots = (tokens % PAGE_SIZE).to(tl.int64)
            k_offs = (pages * stride_k_block + slots * stride_k_token) * STRIDE_UNIT
            v_offs = (pages * stride_v_block + slots * stride_v_token) * STRIDE_UNIT
        k_mask = live_d[:, None] & live_n[None, :]
        k = tl.load(k_head + k_offs[None, :] + offs_d[:, None], mask=k_mask, other=0.0)  # [BLOCK_D, BLOCK_N]
        scores = tl.dot(q, k, input_precision="ieee") * scale_log2
        scores = tl.where(live_n[None, :], scores, float("-inf"))  # [BLOCK_G, BLOCK_N]
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        # A row that has met -inf alone has no maximum to subtract: -inf less -inf is no number.
        offset = tl.where(new_max == float("-inf"), 0.0, new_max)
        probabilities = tl.exp2(scores - offset[:, None])
        decay = tl.exp2(running_max - offset)
        running_sum = running_sum * decay + tl.sum(probabilities, 1)
        running_max = new_max
        # Unused cache may hold NaN, and 0 x NaN is NaN: dead values must not be loaded at all.
        v_mask = live_n[:, None] & live_d[None, :]
        v = tl.load(v_head + v_offs[:, None] + offs_d[None, :], mask=v_mask, other=0.0)  # [BLOCK_N, BLOCK_D]
        acc = tl.dot(probabilities.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")

    out_ptrs = (
        out_ptr
        + sequence * stride_out_batch
        + heads[:, None] * stride_out_head
        + split.to(tl.int64) * stride_out_split
        + offs_d[None, :]
    )
    if NUM_SPLITS == 1:
        out, lse = _finished(acc, running_max, running_sum)
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=live_gd)
        if HAS_LSE:
            tl.store(lse_ptr + sequence * kv_heads * GROUP + heads, lse, mask=live_g)
    else:
        # The merge reads only the shares that hold tokens.
        held = split < live_splits
        at = (sequence * kv_heads * GROUP + heads) * NUM_SPLITS + split
        tl.store(out_ptrs, acc, mask=live_gd & held)
        tl.store(max_ptr + at, running_max, mask=live_g & held)
        tl.store(sum_ptr + at, running_sum, mask=live_g & held)


@triton.jit  # type: ignore[untyped-decorator]
def _finished(acc: tl.tensor, maximum: tl.tensor, total: tl.tensor) -> tl.tuple:
    """Output and natural log-sum-exp of weighted values, their base-2 maximum and their sum."""
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    lse = (maximum + tl.log2(total)) * 0.6931471805599453  # ln(2)
    return out, tl.where(total == 0.0, float("-inf"), lse)


@triton.jit  # type: ignore[untyped-decorator]
def _merge_kernel(
    partial_ptr: tl.tensor,
    max_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    q_heads: tl.tensor,
    capacity: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_head: tl.tensor,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One query head: the shares of its context added in order, BLOCK_S at a time."""
    sequence = (tl.program_id(0) // q_heads).to(tl.int64)
    head = (tl.program_id(0) % q_heads).to(tl.int64)
    _, _, live_splits = _live_range(context_lens_ptr, sequence, capacity, 0, NUM_SPLITS, BLOCK_N)

    offs_d = tl.arange(0, BLOCK_D)
    live_d = offs_d < HEAD_DIM
    first_row = tl.program_id(0).to(tl.int64) * NUM_SPLITS
    running_max = tl.full((1,), float("-inf"), tl.float32)
    running_sum = tl.zeros((1,), tl.float32)
    acc = tl.zeros((1, BLOCK_D), tl.float32)
    for first in range(0, live_splits, BLOCK_S):
        splits = first + tl.arange(0, BLOCK_S)
        live_s = splits < live_splits
        maxima = tl.load(max_ptr + first_row + splits, mask=live_s, other=float("-inf"))  # [BLOCK_S]
        sums = tl.load(sum_ptr + first_row + splits, mask=live_s, other=0.0)
        partial_ptrs = partial_ptr + (first_row + splits)[:, None] * HEAD_DIM + offs_d[None, :]
        partials = tl.load(
            partial_ptrs, mask=live_s[:, None] & live_d[None, :], other=0.0
        )  # [BLOCK_S, BLOCK_D]
        new_max = tl.maximum(running_max, tl.max(maxima, 0))
        offset = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(maxima - offset)
        decay = tl.exp2(running_max - offset)
        running_sum = running_sum * decay + tl.sum(weights * sums, 0)
        acc = acc * decay[:, None] + tl.sum(weights[:, None] * partials, 0)[None, :]
        running_max = new_max

    out, lse = _finished(acc, running_max, running_sum)
    out_ptrs = out_ptr + sequence * stride_out_batch + head * stride_out_head + offs_d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=live_d[None, :])
    if HAS_LSE:
        tl.store(lse_ptr + tl.program_id(0) + tl.arange(0, 1), lse)


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    return_lse: bool = False,
    tiling: DecodeTiling | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of one query token a sequence over the live part of its key-value cache.

    Not differentiable. The same bits every run. The launch depends on shapes and capacity alone,
    never on the lengths, which stay on the device: it can be captured in a CUDA graph.

    Args:
        q: [batch, q_heads, head_dim], bfloat16, float16 or float32; head_dim a multiple of 8
            from 16 to 256, its stride 1.
        k_cache: [batch, capacity, kv_heads, head_dim] with any strides but 1 for head_dim, so
            tokens or heads may come first in memory; with `block_table`
            [pages, page_size, kv_heads, head_dim]. Dtype of `q`. q_heads is kv_heads times 1 to
            64; query heads h group, ..., h group + group - 1 read key-value head h.
        v_cache: shape of `k_cache`, with strides of its own.
        context_lens: [batch] int32: how many tokens of each cache are live, clamped to
            0..capacity. What lies past them is never read.
        block_table: [batch, max_pages] int32: the pages of each sequence in order, so that
            capacity = max_pages x page_size. Entries past the live pages are never read; live
            entries must lie in 0..pages - 1, which is not checked.
        scale: multiplies the scores; 1 / sqrt(head_dim) when none.
        out: where to write the output: shape and dtype of `q`, stride 1 for head_dim, not
            overlapping the inputs. A new tensor when none.
        return_lse: also return the log-sum-exp of the scaled scores.
        tiling: how to cut the work; `choose_decode_tiling` decides when none.

    Returns:
        Output [batch, q_heads, head_dim], dtype of `q`; with `return_lse` a pair with the natural
        log-sum-exp [batch, q_heads], float32. Length 0 gives output 0 and -inf.

    Raises:
        ValueError: an argument of the wrong shape, strides, dtype or device; or CPU tensors while
            Triton compiles its kernels.
    """
    checks.check_decode_attention(
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        context_lens=context_lens,
        block_table=block_table,
        scale=scale,
        out=out,
    )
    batch, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    group = q_heads // kv_heads
    page_size = 0 if block_table is None else k_cache.shape[1]
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, q_heads), dtype=torch.float32, device=q.device) if return_lse else None
    if tiling is None:
        tiling = choose_decode_tiling(
            batch=batch,
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            capacity=capacity,
            page_size=page_size,
            element_bytes=q.element_size(),
            limits=gpu_limits(q.device),
        )
    splits = tiling.num_splits
    target, maxima, sums = out[:, :, None], None, None
    if splits > 1:
        target = torch.empty((batch, q_heads, splits, head_dim), dtype=torch.float32, device=q.device)
        maxima = torch.empty((batch, q_heads, splits), dtype=torch.float32, device=q.device)
        sums = torch.empty_like(maxima)
    unit = _stride_unit(k_cache, v_cache)
    block_d = triton.next_power_of_2(head_dim)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _split_kernel[(batch * splits * kv_heads * math.ceil(group / tiling.block_g),)](
            q_ptr=q,
            k_ptr=k_cache,
            v_ptr=v_cache,
            context_lens_ptr=context_lens,
            block_table_ptr=block_table,
            out_ptr=target,
            max_ptr=maxima,
            sum_ptr=sums,
            lse_ptr=lse,
            scale_log2=scale * _LOG2_E,
            kv_heads=kv_heads,
            capacity=capacity,
            stride_q_batch=q.stride(0),
            stride_q_head=q.stride(1),
            stride_k_block=k_cache.stride(0) // unit,
            stride_k_token=k_cache.stride(1) // unit,
            stride_k_head=k_cache.stride(2) // unit,
            stride_v_block=v_cache.stride(0) // unit,
            stride_v_token=v_cache.stride(1) // unit,
            stride_v_head=v_cache.stride(2) // unit,
            stride_table=0 if block_table is None else block_table.stride(0),
            stride_out_batch=target.stride(0),
            stride_out_head=target.stride(1),
            stride_out_split=target.stride(2),
            GROUP=group,
            HEAD_DIM=head_dim,
            PAGE_SIZE=page_size,
            STRIDE_UNIT=unit,
            NUM_SPLITS=splits,
            HAS_LSE=return_lse,
            BLOCK_G=tiling.block_g,
            BLOCK_D=block_d,
            BLOCK_N=tiling.block_n,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            enable_fp_fusion=True,
        )
        if splits > 1:
            _merge_kernel[(batch * q_heads,)](
                partial_ptr=target,
                max_ptr=maxima,
                sum_ptr=sums,
                context_lens_ptr=context_lens,
                out_ptr=out,
                lse_ptr=lse,
                q_heads=q_heads,
                capacity=capacity,
                stride_out_batch=out.stride(0),
                stride_out_head=out.stride(1),
                HEAD_DIM=head_dim,
                NUM_SPLITS=splits,
                HAS_LSE=return_lse,
                BLOCK_S=min(_MERGE_SPLITS, triton.next_power_of_2(splits)),
                BLOCK_D=block_d,
                BLOCK_N=tiling.block_n,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out if lse is None else (out, lse)


def _stride_unit(*caches: torch.Tensor) -> int:
    """8 where every cache stride is a multiple of 8, 1 elsewhere.

    Triton knows of an argument only whether 16 divides it. 8 elements of 2 bytes already make the
    16 of an asynchronous load, and a head_dim of 40 or 72 gives strides of no more.
    """
    return 8 if all(stride % 8 == 0 for cache in caches for stride in cache.stride()[:3]) else 1
