"""The launch plan of a `prefill_attention` call: shapes, tiling, grid and workspace. Touches no device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton.language as tl

from .gpu_limits import next_power_of_two
from .prefill_attention_schedule import ORDER_HEADER
from .prefill_attention_tiling import (
    TMA_FROM_CAPABILITY,
    PrefillAttentionTiling,
    choose_prefill_attention_tiling,
    head_dim_blocks,
)

if TYPE_CHECKING:
    from .gpu_limits import GpuLimits

PLANNED_OPTIONS = (
    "cu_seqlens",
    "lengths",
    "context_lens",
    "k_cache",
    "v_cache",
    "block_table",
    "causal",
    "window",
    "sinks",
    "tiling",
)
"""Options of `prefill_attention` that its plan takes."""

_TMA_ALIGNMENT = 16
_SPECIALIZED_FAMILY = 10
_FLOAT8_DOT_FROM_CAPABILITY = 89
_DOT_DEPTH = 16  # least depth of `tl.dot`
_FLOAT8_DOT_DEPTH = 32
_MOST_ROWS = 2**31  # at the end of the last tile
_FLOAT8_P_LOG2 = 8
"""Probabilities of float8 are up to 256: the largest power of two of e4m3."""
_LANE_SUMS = 8
"""Columns of an MMA's result that repeat over the lanes of a row. On sm_100 a lane has a whole row."""
_HALVED_FROM_COLUMNS = 128
_DOT_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}


@dataclass(frozen=True, kw_only=True)
class TmaTiles:
    """Queries, keys or values as a matrix for the TMA: one row per token of one or of all heads.

    Attributes:
        matrix: [rows, columns], a view of the tensor.
        rows_batch: rows from a sequence to the next.
        rows_head: rows from a head to the next; 0 where heads lie side by side in a row.
        columns_head: columns from a head to the next; 0 where heads are below each other.
        rows: tokens of a tile.
    """

    matrix: torch.Tensor
    rows_batch: int
    rows_head: int
    columns_head: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class PrefillAttentionPlan:
    """Shapes, tiling, grid and workspace of one `prefill_attention` call.

    Attributes:
        tiling: its variant one that these operands allow.
        batch: sequences.
        tokens: most tokens of a sequence, or those of all packed sequences.
        row_blocks: most row blocks of a sequence.
        items: items at most.
        programs: CTAs.
        page_size: tokens of a page of the cache; 0 for a contiguous one.
        capacity: tokens that the cache of one sequence can hold.
        window: sliding window, in tokens; 0 for none.
        most_keys: most keys that a row block reads under a sliding window.
        block_d: columns of the first tile of a query or key.
        block_r: columns of the second; 0 for none.
        block_v: columns of a tile of values.
        query_tiles: the queries for the TMA; None where pointers load them.
        key_tiles: likewise the keys.
        value_tiles: likewise.
        dot_dtype: Triton's dtype of both products.
        p_log2: log2 of the largest probability.
        lane_sums: sums of probabilities that are kept per row.
        promoted: whether products are added to the accumulator outside of the tensor cores.
        halves: whether the accumulator is rescaled in halves of its columns for masked tiles.
        same_tiles: whether one row and column of the TMA serve a tile of keys and that of its values.
        scales_cache_alone: whether the scales multiply the cache and not the new tokens.
        e4m3_bits: whether float8 e4m3 of q, k and v is decoded from its bits, because the GPU has no
            instructions for it.
        cache_e4m3_bits: likewise of the cache.
        ordered: whether the order kernel ranks the row blocks.
        most_row_blocks: most row blocks of all sequences.
    """

    tiling: PrefillAttentionTiling
    batch: int
    tokens: int
    row_blocks: int
    items: int
    programs: int
    page_size: int
    capacity: int
    window: int
    most_keys: int
    block_d: int
    block_r: int
    block_v: int
    query_tiles: TmaTiles | None
    key_tiles: TmaTiles | None
    value_tiles: TmaTiles | None
    dot_dtype: tl.dtype
    p_log2: int
    lane_sums: int
    promoted: bool
    halves: bool
    same_tiles: bool
    scales_cache_alone: bool
    e4m3_bits: bool
    cache_e4m3_bits: bool
    ordered: bool
    most_row_blocks: int

    @property
    def workspace_bytes(self) -> int:
        """Two int32 per row block, and the header."""
        return 4 * (ORDER_HEADER + 2 * self.most_row_blocks) if self.ordered else 0


def plan_prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    limits: GpuLimits,
    cu_seqlens: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    context_lens: torch.Tensor | None = None,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,  # noqa: ARG001  (k_cache says what there is to plan)
    block_table: torch.Tensor | None = None,
    causal: bool = True,  # noqa: ARG001
    window: int | None = None,
    sinks: torch.Tensor | None = None,  # noqa: ARG001
    tiling: PrefillAttentionTiling | None = None,
) -> PrefillAttentionPlan:
    """The plan of a call with checked arguments; the chooser fills in a missing tiling."""
    packed = cu_seqlens is not None
    batch = len(cu_seqlens) - 1 if cu_seqlens is not None else q.shape[0]
    tokens, q_heads, head_dim = q.shape[-3:]
    v_head_dim = v.shape[-1]
    capacity, page_size = 0, 0
    if k_cache is not None:
        page_size = 0 if block_table is None else k_cache.shape[1]
        capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    if tiling is None:
        tiling = choose_prefill_attention_tiling(
            batch=batch,
            tokens=-(-tokens // batch) if packed else tokens,
            q_heads=q_heads,
            kv_heads=k.shape[-2],
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            element_bytes=q.element_size(),
            limits=limits,
        )
    float8 = q.element_size() == 1
    float8_dots = float8 and limits.compute_capability >= _FLOAT8_DOT_FROM_CAPABILITY
    least = _FLOAT8_DOT_DEPTH if float8_dots else _DOT_DEPTH
    if tiling.block_n < least:
        tiling = dataclasses.replace(tiling, block_n=least)
    block_d, block_r = head_dim_blocks(head_dim, least)
    block_v = max(_DOT_DEPTH, next_power_of_two(v_head_dim))
    tiles: list[TmaTiles | None] = [None] * 3
    if tiling.variant != "pointers":
        fits = limits.compute_capability >= TMA_FROM_CAPABILITY
        if fits and block_d + block_r == head_dim and block_v == v_head_dim:
            sizes = tiling.block_m, tiling.block_n, tiling.block_n
            tiles = [_tma_tiles(x, rows) for x, rows in zip((q, k, v), sizes, strict=True)]
        if None in tiles:
            tiles = [None] * 3
            tiling = dataclasses.replace(tiling, variant="pointers")
        elif limits.compute_capability // 10 != _SPECIALIZED_FAMILY:
            tiling = dataclasses.replace(tiling, variant="descriptors")
    row_blocks = math.ceil(tokens / tiling.block_m)
    most_row_blocks = tokens // tiling.block_m + batch if packed else batch * row_blocks
    ordered = batch > 1 and any(each is not None for each in (cu_seqlens, lengths, context_lens))
    items = (most_row_blocks if ordered else batch * row_blocks) * q_heads
    span = tokens + capacity
    window = 0 if window is None else min(window, span)
    lacks_e4m3 = limits.compute_capability < _FLOAT8_DOT_FROM_CAPABILITY
    return PrefillAttentionPlan(
        tiling=tiling,
        batch=batch,
        tokens=tokens,
        row_blocks=row_blocks,
        items=items,
        programs=min(tiling.programs, items),
        page_size=page_size,
        capacity=capacity,
        window=window,
        most_keys=min(window + tiling.block_m, span) if window else span,
        block_d=block_d,
        block_r=block_r,
        block_v=block_v,
        query_tiles=tiles[0],
        key_tiles=tiles[1],
        value_tiles=tiles[2],
        dot_dtype=_DOT_DTYPES[q.dtype] if float8_dots or not float8 else tl.float16,
        p_log2=_FLOAT8_P_LOG2 if float8_dots else 0,
        lane_sums=1 if limits.compute_capability // 10 == 10 else _LANE_SUMS,
        promoted=float8_dots and limits.compute_capability // 10 == 9,
        halves=limits.compute_capability // 10 == 10 and block_v >= _HALVED_FROM_COLUMNS,
        same_tiles=limits.compute_capability // 10 == 10 and _same_place(tiles[1], tiles[2]),
        scales_cache_alone=k_cache is not None and k_cache.dtype != k.dtype,
        e4m3_bits=lacks_e4m3 and q.dtype == torch.float8_e4m3fn,
        cache_e4m3_bits=lacks_e4m3 and k_cache is not None and k_cache.dtype == torch.float8_e4m3fn,
        ordered=ordered,
        most_row_blocks=most_row_blocks,
    )


def _same_place(keys: TmaTiles | None, values: TmaTiles | None) -> bool:
    """Whether a token's value is at the row and column of its key; false without tiles."""
    if keys is None or values is None:
        return False
    names = ("rows_batch", "rows_head", "columns_head")
    return all(getattr(keys, name) == getattr(values, name) for name in names)


def _tma_tiles(x: torch.Tensor, tile_rows: int) -> TmaTiles | None:
    """The matrix whose rows are tokens; None where strides, alignment or size do not allow one.

    A row starts at each multiple of the token stride. Heads and sequences are then at other rows, or at other
    columns of the same rows.
    """
    x = x[None] if x.dim() == 3 else x
    batch, tokens, heads, head_dim = x.shape
    stride_batch, stride_token, stride_head, stride_element = x.stride()
    size = x.element_size()
    if tokens == 1 and stride_token <= 0:
        stride_token = heads * head_dim
    if stride_element != 1 or stride_token <= 0 or min(stride_batch, stride_head) < 0:
        return None
    if stride_token * size % _TMA_ALIGNMENT or x.data_ptr() % _TMA_ALIGNMENT:
        return None
    rows_batch = stride_batch // stride_token if batch > 1 else 0
    side_by_side = heads > 1 and stride_head < stride_token
    rows_head = 0 if heads == 1 or side_by_side else stride_head // stride_token
    columns_head = stride_head if side_by_side else 0
    reachable = (batch == 1 or stride_batch % stride_token == 0) and (
        heads == 1 or side_by_side or stride_head % stride_token == 0
    )
    rows = tokens + (batch - 1) * rows_batch + (heads - 1) * rows_head
    columns = head_dim + (heads - 1) * columns_head
    if not reachable or rows + tile_rows >= _MOST_ROWS:
        return None
    matrix = x.as_strided((rows, columns), (stride_token, 1))
    return TmaTiles(
        matrix=matrix, rows_batch=rows_batch, rows_head=rows_head, columns_head=columns_head, rows=tile_rows
    )
