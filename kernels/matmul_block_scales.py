"""Scales per block of K inside the matmul kernels: each product is multiplied by the scales of its block.

x has a scale per row and block of K, the weight one per block of rows and block of K. A tile's product over
one block of K is then multiplied by the scale of its row and the scale of its column block. If all columns of
a tile lie in one block of the weight, both are one factor per row, and adding the product to the float32 sum
is one fused multiply-add per element.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .interpreter import patch_interpreter

patch_interpreter()


class BlockScaleTensors(NamedTuple):
    """Scales per block of K, as arguments of a kernel: an operand without blocks has None as its pointer.

    Attributes:
        x_ptr: [batch, rows, blocks of K], or None.
        stride_x_batch: in elements, as the others.
        stride_x_row: between rows.
        stride_x_k: between blocks of K.
        weight_ptr: [batch, blocks of rows, blocks of K], or None.
        stride_weight_batch: of the scales of the weight.
        stride_weight_row: between blocks of rows.
        stride_weight_k: between blocks of K.
    """

    x_ptr: tl.tensor
    stride_x_batch: tl.tensor
    stride_x_row: tl.tensor
    stride_x_k: tl.tensor
    weight_ptr: tl.tensor
    stride_weight_batch: tl.tensor
    stride_weight_row: tl.tensor
    stride_weight_k: tl.tensor


@triton.jit  # type: ignore[untyped-decorator]
def scale_pointers(
    scales: BlockScaleTensors,
    batch: tl.tensor,
    row: tl.tensor,
    weight_row: tl.tensor,
    up_rows: tl.tensor,
    BLOCK_SCALES: tl.constexpr,
    WEIGHT_BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Scalar pointers to the first block of K: of a tile's first row of x, of the weight, and of its up rows.

    They are scalars so that a flattened tile loop carries no vector of pointers. BLOCK_SCALES says how the
    weight's scales vary over the columns of a tile: "one" block of the weight; "pairs" or "halves", one block
    of gate and one of up rows, interleaved or in halves; or "each" column, whose pointer stays at row 0.

    Args:
        scales: the scales of both operands.
        batch: of this tile.
        row: the tile's first row of x.
        weight_row: the tile's first row of the weight.
        up_rows: rows from the gate to the up projection.
        BLOCK_SCALES: as above.
        WEIGHT_BLOCK_N: rows of the weight per block.
    """
    x_ptr, weight_ptr, up_ptr = row, row, row  # stay where the call has no such scales
    if scales.x_ptr is not None:
        x_ptr = scales.x_ptr + batch.to(tl.int64) * scales.stride_x_batch
        x_ptr += row.to(tl.int64) * scales.stride_x_row
    if scales.weight_ptr is not None:
        weight_ptr = scales.weight_ptr + batch.to(tl.int64) * scales.stride_weight_batch
        first = weight_row.to(tl.int64)
        if BLOCK_SCALES == "pairs" or BLOCK_SCALES == "halves":  # noqa: PLR1714  (Triton has no `in`)
            up_ptr = weight_ptr + (first + up_rows) // WEIGHT_BLOCK_N * scales.stride_weight_row
        if BLOCK_SCALES != "each":
            weight_ptr += first // WEIGHT_BLOCK_N * scales.stride_weight_row
    return x_ptr, weight_ptr, up_ptr


@triton.jit  # type: ignore[untyped-decorator]
def no_factors(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SCALES: tl.constexpr) -> tl.tuple:
    """Factors of 0, in the shapes of `block_factors`."""
    zeros = tl.zeros((BLOCK_M,), tl.float32)
    return zeros, tl.zeros((BLOCK_N if BLOCK_SCALES == "each" else BLOCK_M,), tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def block_factors(
    none: tl.tuple,
    scales: BlockScaleTensors,
    pointers: tl.tuple,
    live_rows: tl.tensor,
    weight_rows: tl.tensor,
    live_n: tl.tensor,
    k: tl.tensor,
    in_features: tl.tensor,
    BLOCK_SCALES: tl.constexpr,
    X_BLOCK_K: tl.constexpr,
    WEIGHT_BLOCK_K: tl.constexpr,
    WEIGHT_BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """Factors of the product that begins at `k`, 0 past the end of K: two, as `promoted` takes them.

    The first has an element per row, [BLOCK_M]. The second is that of the up columns; with "each" it has an
    element per column, [BLOCK_N]. Without block scales they are `none`, so that a loop does not change them.

    Args:
        none: factors of 0.
        scales: the scales of both operands.
        pointers: of `scale_pointers`.
        live_rows: rows of x from the tile's first to the last of all.
        weight_rows: [BLOCK_N], rows of the weight of the tile's columns.
        live_n: [BLOCK_N], whether they exist.
        k: where the product begins.
        in_features: K.
        BLOCK_SCALES: of `scale_pointers`.
        X_BLOCK_K: elements of K per block of x.
        WEIGHT_BLOCK_K: elements of K per block of the weight.
        WEIGHT_BLOCK_N: rows of the weight per block.
    """
    first, second = none
    if BLOCK_SCALES != "none":
        x_ptr, weight_ptr, up_ptr = pointers
        live = k < in_features
        if scales.x_ptr is not None:
            lanes_m = tl.arange(0, first.shape[0])
            x_ptrs = x_ptr + lanes_m.to(tl.int64) * scales.stride_x_row
            x_ptrs += (k // X_BLOCK_K).to(tl.int64) * scales.stride_x_k
            first = tl.load(x_ptrs, mask=(lanes_m < live_rows) & live, other=0.0).to(tl.float32)
        else:
            first += 1.0
        if scales.weight_ptr is not None:
            weight_offset = (k // WEIGHT_BLOCK_K).to(tl.int64) * scales.stride_weight_k
            if BLOCK_SCALES == "each":
                blocks = (weight_rows // WEIGHT_BLOCK_N).to(tl.int64)
                weight_ptrs = weight_ptr + weight_offset + blocks * scales.stride_weight_row
                second = tl.load(weight_ptrs, mask=live_n & live, other=0.0).to(tl.float32)
            else:
                if BLOCK_SCALES != "one":
                    second = first * tl.load(up_ptr + weight_offset, mask=live, other=0.0).to(tl.float32)
                first = first * tl.load(weight_ptr + weight_offset, mask=live, other=0.0).to(tl.float32)
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
            is_up = columns >= acc.shape[ROW] // 2
            if BLOCK_SCALES == "pairs":
                is_up = columns % 2 == 1
            factor = tl.where(tl.expand_dims(is_up, COLUMN), tl.expand_dims(second, ROW), factor)
        acc = tl.fma(product, tl.broadcast_to(factor, acc.shape), acc)
    return acc
