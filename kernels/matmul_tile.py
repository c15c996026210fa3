"""Device functions of the matmul kernels: the grouped (swizzled) tile order and one K step."""

from __future__ import annotations

import triton
import triton.language as tl

from .float8 import to_float16
from .interpreter import patch_interpreter
from .matmul_block_scales import promoted

patch_interpreter()


@triton.jit  # type: ignore[untyped-decorator]
def tile_of_item(
    item: tl.tensor,
    whole_tiles: tl.tensor,
    blocks_m: tl.tensor,
    blocks_n: tl.tensor,
    k_tiles: tl.tensor,
    GROUP_M: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
) -> tl.tuple:
    """Batch, row block, column block and K steps [first_k, last_k) of a work item, in swizzled tile order.

    The first `whole_tiles` items are one tile each. The others are split-K: one of NUM_SPLITS chunks of K of
    a tile, in K order. Inside a group of GROUP_M row blocks the order goes down the rows first, so that tiles
    that run at once share panels of x and weight in L2.
    """
    tile = item
    first_k = k_tiles * 0
    last_k = k_tiles
    if NUM_SPLITS > 1:
        split = tl.maximum(item - whole_tiles, 0)
        tile = tl.minimum(item, whole_tiles) + split // NUM_SPLITS
        steps = tl.where(item < whole_tiles, k_tiles, tl.cdiv(k_tiles, NUM_SPLITS))
        first_k = tl.minimum(split % NUM_SPLITS * steps, k_tiles)
        last_k = tl.minimum(first_k + steps, k_tiles)
    batch = tile // (blocks_m * blocks_n)
    tile = tile % (blocks_m * blocks_n)
    group_tiles = GROUP_M * blocks_n
    first_m = tile // group_tiles * GROUP_M
    group_rows = tl.minimum(blocks_m - first_m, GROUP_M)
    block_m = first_m + tile % group_tiles % group_rows
    block_n = tile % group_tiles // group_rows
    return batch, block_m, block_n, first_k, last_k


@triton.jit  # type: ignore[untyped-decorator]
def rows_of_columns(
    feature: tl.tensor,
    lanes_n: tl.tensor,
    features: tl.tensor,
    stride_row: tl.tensor,
    up_offset: tl.tensor,
    GATED: tl.constexpr,
    HALVES: tl.constexpr,
) -> tl.tuple:
    """Rows of the weight behind a tile's columns: gate and up are neighbours, so that one thread has both.

    Args:
        feature: the tile's first column.
        lanes_n: [BLOCK_N], its columns, counted from there.
        features: rows of the weight, or of both weights.
        stride_row: elements from row to row, or if GATED from pair to pair.
        up_offset: elements from a gate row to its up row.
        GATED: whether each output column has a gate and an up row.
        HALVES: whether all gate rows of the weight come before its up rows.

    Returns:
        The row, or pair, of `feature`; elements from there to the rows of `lanes_n`; and the same two as row
        numbers, by which the weight's block scales go.
    """
    row, offsets, scale_row, scale_lanes = feature, lanes_n * stride_row, feature, lanes_n
    if GATED:
        row = feature // 2
        offsets = lanes_n // 2 * stride_row + lanes_n % 2 * up_offset
        if HALVES:
            scale_row, scale_lanes = row, lanes_n // 2 + lanes_n % 2 * (features // 2)
    return row, offsets, scale_row, scale_lanes


@triton.jit  # type: ignore[untyped-decorator]
def load_tile(
    ptrs: tl.tensor,
    live_rows: tl.tensor,
    live_k: tl.tensor,
    EVEN_ROWS: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """An operand's tile [rows, BLOCK_K], 0 outside it; even sizes need no mask, which saves registers."""
    if EVEN_ROWS and EVEN_K:
        tile = tl.load(ptrs)
    elif EVEN_K:
        tile = tl.load(ptrs, mask=live_rows[:, None], other=0.0)
    elif EVEN_ROWS:
        tile = tl.load(ptrs, mask=live_k[None, :], other=0.0)
    else:
        tile = tl.load(ptrs, mask=live_rows[:, None] & live_k[None, :], other=0.0)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def multiplied(operand: tl.tensor, OTHER: tl.constexpr, FLOAT8_BITS: tl.constexpr) -> tl.tensor:
    """An operand in the dtype that tensor cores multiply: that of the other operand if this one is narrower.

    Float16, bfloat16 and float32 hold all values of float8 and int8; float32 those of every other dtype.
    FLOAT8_BITS says that uint8 are the bits of float8 e4m3.
    """
    if FLOAT8_BITS and operand.dtype.primitive_bitwidth == 8:
        operand = to_float16(operand)
        if OTHER.primitive_bitwidth > 8:
            operand = operand.to(OTHER)
    elif operand.dtype.primitive_bitwidth < OTHER.primitive_bitwidth:
        operand = operand.to(OTHER)
    return operand


@triton.jit  # type: ignore[untyped-decorator]
def accumulate(
    x: tl.tensor,
    weight: tl.tensor,
    acc: tl.tensor,
    pending: tl.tensor,
    WEIGHT_FIRST: tl.constexpr,
    FLOAT8_BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED_PARTS: tl.constexpr,
    factors: tl.tuple,
    pending_factors: tl.tuple,
    BLOCK_SCALES: tl.constexpr,
) -> tl.tuple:
    """Tensor-core step: adds x [BLOCK_M, PART_K] times the transpose of weight [BLOCK_N, PART_K] to `acc`.

    The narrower operand is converted to the dtype of the other (`multiplied`); int8 by int8 is multiplied as
    integers, and `acc` is int32 unless sums are promoted. WEIGHT_FIRST swaps the operands (swap AB) and
    accumulates the transposed product: weights may then come from registers, and fill the rows of a
    tensor-core instruction even if x has few rows.

    PROMOTED_PARTS 0 leaves accumulation to the tensor cores. Otherwise their sums are too imprecise, or each
    block of K has scales of its own, so each product is promoted: multiplied by its factors and added to
    `acc` by float32 units. One part per K step is promoted at once. Of several, each is promoted after the
    next one is issued, so that these additions overlap tensor-core work: `pending` is the product not yet
    promoted, with `pending_factors`. The last of a step stays in flight while the next step begins.

    Returns:
        acc, pending and pending_factors.
    """
    left = multiplied(x, weight.dtype, FLOAT8_BITS)
    right = multiplied(weight, x.dtype, FLOAT8_BITS)
    if WEIGHT_FIRST:
        left, right = right, left
    if PROMOTED_PARTS == 0:
        acc = tl.dot(left, tl.trans(right), acc, input_precision=PRECISION, out_dtype=acc.dtype)
    else:
        product = tl.dot(left, tl.trans(right), input_precision=PRECISION)
        if PROMOTED_PARTS == 1:
            acc = promoted(acc, product, factors, WEIGHT_FIRST, BLOCK_SCALES)
        else:
            acc = promoted(acc, pending, pending_factors, WEIGHT_FIRST, BLOCK_SCALES)
            pending = product
            pending_factors = factors
    return acc, pending, pending_factors
