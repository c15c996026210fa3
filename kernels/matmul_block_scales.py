"""Scales per block of K inside the matmul kernels: each product is multiplied by the scales of its block.

x has a scale per row and block of K, the weight one per block of rows and block of K. A tile's product over
one block of K is then multiplied by the scale of its row and the scale of its column block. If all columns of
a tile lie in one block of the weight, both are one factor per row, and adding the product to the float32 sum
is one fused multiply-add per element.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .interpreter import patch_interpreter

patch_interpreter()


@triton.jit  # type: ignore[untyped-decorator]
def scale_pointers(
    x_block_ptr: tl.tensor,
    weight_block_ptr: tl.tensor,
    batch: tl.tensor,
    offs_m: tl.tensor,
    weight_row: tl.tensor,
    weight_lanes: tl.tensor,
    up_rows: tl.tensor,
    stride_x_block_batch: tl.tensor,
    stride_x_block_row: tl.tensor,
    stride_weight_block_batch: tl.tensor,
    stride_weight_block_row: tl.tensor,
    BLOCK_SCALES: tl.constexpr,
    WEIGHT_BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Pointers to the scales of the first block of K: of the rows of x, of the weight, and of its up rows.

    BLOCK_SCALES says how the weight's scales vary over the columns of a tile: "one" block of the weight;
    "pairs" or "halves", one block of gate and one of up rows, interleaved or in halves; or "each" column.

    Args:
        offs_m: [BLOCK_M], rows of x.
        weight_row: the tile's first row of the weight.
        weight_lanes: [BLOCK_N], the rows of the tile's columns, counted from `weight_row`.
        up_rows: rows from the gate to the up projection.
    """
    x_ptrs = None
    weight_ptrs = None
    up_ptr = None
    if x_block_ptr is not None:
        x_ptrs = x_block_ptr + batch.to(tl.int64) * stride_x_block_batch
        x_ptrs = x_ptrs + offs_m.to(tl.int64) * stride_x_block_row
    if weight_block_ptr is not None:
        weight_block_ptr += batch.to(tl.int64) * stride_weight_block_batch
        if BLOCK_SCALES == "each":
            rows = weight_row.to(tl.int64) + weight_lanes
            weight_ptrs = weight_block_ptr + rows // WEIGHT_BLOCK_N * stride_weight_block_row
        else:
            first = weight_row.to(tl.int64)
            weight_ptrs = weight_block_ptr + first // WEIGHT_BLOCK_N * stride_weight_block_row
            if BLOCK_SCALES != "one":
                up_ptr = weight_block_ptr + (first + up_rows) // WEIGHT_BLOCK_N * stride_weight_block_row
    return x_ptrs, weight_ptrs, up_ptr


@triton.jit  # type: ignore[untyped-decorator]
def block_factors(
    pointers: tl.tuple,
    live_m: tl.tensor,
    live_n: tl.tensor,
    k: tl.tensor,
    in_features: tl.tensor,
    stride_x_block_k: tl.tensor,
    stride_weight_block_k: tl.tensor,
    BLOCK_SCALES: tl.constexpr,
    X_BLOCK_K: tl.constexpr,
    WEIGHT_BLOCK_K: tl.constexpr,
) -> tl.tuple:
    """Factors of the product that begins at `k`, 0 past the end of K: two, as `promoted` takes them.

    The first has an element per row, [BLOCK_M]. The second is that of the up columns, or with "each" an
    element per column, [BLOCK_N].
    """
    x_ptrs, weight_ptrs, up_ptr = pointers
    live = k < in_features
    first = tl.zeros(live_m.shape, tl.float32)
    second = first
    if BLOCK_SCALES != "none":
        first += 1.0
        if x_ptrs is not None:
            x_offset = (k // X_BLOCK_K).to(tl.int64) * stride_x_block_k
            first = tl.load(x_ptrs + x_offset, mask=live_m & live, other=0.0).to(tl.float32)
        if weight_ptrs is not None:
            weight_offset = (k // WEIGHT_BLOCK_K).to(tl.int64) * stride_weight_block_k
            if BLOCK_SCALES == "each":
                second = tl.load(weight_ptrs + weight_offset, mask=live_n & live, other=0.0).to(tl.float32)
            else:
                scale = tl.load(weight_ptrs + weight_offset, mask=live, other=0.0).to(tl.float32)
                if up_ptr is not None:
                    second = first * tl.load(up_ptr + weight_offset, mask=live, other=0.0).to(tl.float32)
                first = first * scale
    return first, second


@triton.jit  # type: ignore[untyped-decorator]
def promoted(
    acc: tl.tensor,
    product: tl.tensor,
    factors: tl.tuple,
    WEIGHT_FIRST: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
) -> tl.tensor:
    """`acc` plus a product times its factors, by float32 units; both are transposed under WEIGHT_FIRST."""
    product = product.to(tl.float32)
    if BLOCK_SCALES == "none":
        acc += product
    else:
        first, second = factors
        ROW: tl.constexpr = 0 if WEIGHT_FIRST else 1
        COLUMN: tl.constexpr = 1 - ROW
        factor = tl.expand_dims(first, ROW)
        if BLOCK_SCALES == "each":
            product = product * tl.expand_dims(second, COLUMN)
        elif BLOCK_SCALES != "one":
            columns = tl.arange(0, acc.shape[ROW])
            if BLOCK_SCALES == "pairs":
                is_up = columns % 2 == 1
            else:
                is_up = columns >= acc.shape[ROW] // 2
            factor = tl.where(tl.expand_dims(is_up, COLUMN), tl.expand_dims(second, ROW), factor)
        acc += product * factor
    return acc
