"""Device functions of the matmul kernels: the grouped (swizzled) tile order, one K step, and the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from .float8 import to_float16
from .interpreter import patch_interpreter

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
def accumulate(
    x: tl.tensor,
    weight: tl.tensor,
    acc: tl.tensor,
    pending: tl.tensor,
    WEIGHT_FIRST: tl.constexpr,
    FLOAT8_BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED_PARTS: tl.constexpr,
) -> tl.tuple:
    """Tensor-core step: adds x [BLOCK_M, PART_K] times the transpose of weight [BLOCK_N, PART_K] to `acc`.

    Int8 weights are converted to the dtype of x, which holds their values exactly. WEIGHT_FIRST swaps the
    operands (swap AB) and accumulates the transposed product: weights may then come from registers, and fill
    the rows of a tensor-core instruction even if x has few rows.

    PROMOTED_PARTS 0 leaves accumulation to the tensor cores. Otherwise their sums are too imprecise, so each
    product is promoted: added to `acc` by float32 units. One part per K step is promoted at once. Of several,
    each is promoted after the next one is issued, so that these additions overlap tensor-core work: `pending`
    is the product not yet promoted. The last of a step stays in flight while the next step begins.

    Returns:
        acc and pending.
    """
    if FLOAT8_BITS:
        x = to_float16(x)
        weight = to_float16(weight)
    elif weight.dtype == tl.int8:
        weight = weight.to(x.dtype)
    if WEIGHT_FIRST:
        x, weight = weight, x
    if PROMOTED_PARTS == 0:
        acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)
    else:
        product = tl.dot(x, tl.trans(weight), input_precision=PRECISION)
        if PROMOTED_PARTS == 1:
            acc += product
        else:
            acc += pending
            pending = product
    return acc, pending


@triton.jit  # type: ignore[untyped-decorator]
def split_columns(acc: tl.tensor) -> tl.tuple:
    """Left and right half of the columns; in this form Triton loads either half from tensor memory alone."""
    return tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2)), (0, 2, 1)))


@triton.jit  # type: ignore[untyped-decorator]
def store_output(
    acc: tl.tensor,
    batch: tl.tensor,
    offs_m: tl.tensor,
    first_n: tl.tensor,
    out_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    factor: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    stride_bias_batch: tl.tensor,
    stride_bias: tl.tensor,
    stride_x_scale: tl.tensor,
    stride_weight_scale_batch: tl.tensor,
    stride_weight_scale: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Fused epilogue in float32: scales, bias, activation; then one rounding and the store.

    `acc` [rows, BLOCK_N] holds the sums of features first_n, first_n + 1, ...; only the first COLUMNS belong
    to this tile. For "swiglu" the gate and up sums of a column are neighbours, and half as many columns are
    stored.
    """
    INTERLEAVED: tl.constexpr = 2 if ACTIVATION == "swiglu" else 1
    out_features = features // INTERLEAVED
    lanes_n = tl.arange(0, acc.shape[1] // INTERLEAVED)
    offs_n = first_n // INTERLEAVED + lanes_n
    live_m, live_n = offs_m < rows, (offs_n < out_features) & (lanes_n < COLUMNS // INTERLEAVED)
    batch_index, columns = batch.to(tl.int64), offs_n.to(tl.int64)
    scale = tl.full((1, 1), 1.0, tl.float32) * factor
    if x_scale_ptr is not None:
        x_scale_ptrs = x_scale_ptr + (batch_index * rows + offs_m) * stride_x_scale
        scale = scale * tl.load(x_scale_ptrs, mask=live_m, other=0.0)[:, None]
    if weight_scale_ptr is not None:
        weight_scale_ptr += batch_index * stride_weight_scale_batch
    if bias_ptr is not None:
        bias_ptr += batch_index * stride_bias_batch
    if ACTIVATION == "swiglu":
        acc, up = tl.split(tl.reshape(acc, (acc.shape[0], acc.shape[1] // 2, 2)))
        up = _scaled(
            up, scale, columns + out_features, live_n, bias_ptr, weight_scale_ptr, stride_bias,
            stride_weight_scale,
        )  # fmt: skip
    acc = _scaled(acc, scale, columns, live_n, bias_ptr, weight_scale_ptr, stride_bias, stride_weight_scale)
    if ACTIVATION == "silu" or ACTIVATION == "swiglu":  # noqa: PLR1714  (Triton has no `in`)
        acc = acc / (1.0 + tl.exp(-acc))
    if ACTIVATION == "swiglu":
        acc = acc * up
    if ACTIVATION == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    out_ptrs = (
        out_ptr
        + batch_index * stride_out_batch
        + offs_m.to(tl.int64)[:, None] * stride_out_row
        + columns[None, :] * stride_out_column
    )
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=live_m[:, None] & live_n[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def store_item(
    acc: tl.tensor,
    split: tl.tensor,
    batch: tl.tensor,
    offs_m: tl.tensor,
    first_n: tl.tensor,
    partial_ptr: tl.tensor,
    out_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    factor: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    stride_bias_batch: tl.tensor,
    stride_bias: tl.tensor,
    stride_x_scale: tl.tensor,
    stride_weight_scale_batch: tl.tensor,
    stride_weight_scale: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    SLICES: tl.constexpr,
    LANE: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Epilogue of an item: stores a whole tile's output, or the float32 partial sums of K split `split` >= 0.

    `partial_ptr` is [splits, BLOCK_M, BLOCK_N]; `acc` starts at column LANE of the tile. Columns are stored
    in SLICES slices, one after another, so that scales, bias and addresses take fewer registers.
    """
    if SLICES > 1:
        HALF: tl.constexpr = acc.shape[1] // 2
        left, right = split_columns(acc)
        store_item(
            left, split, batch, offs_m, first_n, partial_ptr, out_ptr, bias_ptr, x_scale_ptr,
            weight_scale_ptr, factor, rows, features, stride_bias_batch, stride_bias, stride_x_scale,
            stride_weight_scale_batch, stride_weight_scale, stride_out_batch, stride_out_row,
            stride_out_column, ACTIVATION, HALF, SPLIT, SLICES // 2, LANE, BLOCK_N,
        )  # fmt: skip
        store_item(
            right, split, batch, offs_m, first_n + HALF, partial_ptr, out_ptr, bias_ptr, x_scale_ptr,
            weight_scale_ptr, factor, rows, features, stride_bias_batch, stride_bias, stride_x_scale,
            stride_weight_scale_batch, stride_weight_scale, stride_out_batch, stride_out_row,
            stride_out_column, ACTIVATION, HALF, SPLIT, SLICES // 2, LANE + HALF, BLOCK_N,
        )  # fmt: skip
    elif SPLIT and split >= 0:
        lanes_n = tl.arange(0, acc.shape[1])
        live_n = (first_n + lanes_n < features) & (lanes_n < COLUMNS)
        tile_offs = tl.arange(0, acc.shape[0])[:, None] * BLOCK_N + LANE + lanes_n[None, :]
        partial_ptrs = partial_ptr + split.to(tl.int64) * (acc.shape[0] * BLOCK_N) + tile_offs
        tl.store(partial_ptrs, acc, mask=(offs_m < rows)[:, None] & live_n[None, :])
    else:
        store_output(
            acc, batch, offs_m, first_n, out_ptr, bias_ptr, x_scale_ptr, weight_scale_ptr, factor, rows,
            features, stride_bias_batch, stride_bias, stride_x_scale, stride_weight_scale_batch,
            stride_weight_scale, stride_out_batch, stride_out_row, stride_out_column, ACTIVATION, COLUMNS,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def store_pairs(
    gate: tl.tensor,
    up: tl.tensor,
    split: tl.tensor,
    batch: tl.tensor,
    offs_m: tl.tensor,
    first_n: tl.tensor,
    partial_ptr: tl.tensor,
    out_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    factor: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    stride_bias_batch: tl.tensor,
    stride_bias: tl.tensor,
    stride_x_scale: tl.tensor,
    stride_weight_scale_batch: tl.tensor,
    stride_weight_scale: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    SLICES: tl.constexpr,
    LANE: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """`store_item` of a tile whose gate and up sums, each [rows, BLOCK_N / 2], are not interleaved."""
    if SLICES > 1:
        HALF: tl.constexpr = gate.shape[1]
        left_gate, right_gate = split_columns(gate)
        left_up, right_up = split_columns(up)
        store_pairs(
            left_gate, left_up, split, batch, offs_m, first_n, partial_ptr, out_ptr, bias_ptr, x_scale_ptr,
            weight_scale_ptr, factor, rows, features, stride_bias_batch, stride_bias, stride_x_scale,
            stride_weight_scale_batch, stride_weight_scale, stride_out_batch, stride_out_row,
            stride_out_column, ACTIVATION, HALF, SPLIT, SLICES // 2, LANE, BLOCK_N,
        )  # fmt: skip
        store_pairs(
            right_gate, right_up, split, batch, offs_m, first_n + HALF, partial_ptr, out_ptr, bias_ptr,
            x_scale_ptr, weight_scale_ptr, factor, rows, features, stride_bias_batch, stride_bias,
            stride_x_scale, stride_weight_scale_batch, stride_weight_scale, stride_out_batch, stride_out_row,
            stride_out_column, ACTIVATION, HALF, SPLIT, SLICES // 2, LANE + HALF, BLOCK_N,
        )  # fmt: skip
    else:
        # One thread has the gate and up sums of a column: no data moves.
        store_item(
            tl.reshape(tl.join(gate, up), (gate.shape[0], 2 * gate.shape[1])), split, batch, offs_m, first_n,
            partial_ptr, out_ptr, bias_ptr, x_scale_ptr, weight_scale_ptr, factor, rows, features,
            stride_bias_batch, stride_bias, stride_x_scale, stride_weight_scale_batch, stride_weight_scale,
            stride_out_batch, stride_out_row, stride_out_column, ACTIVATION, COLUMNS, SPLIT, 1, LANE, BLOCK_N,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(
    acc: tl.tensor,
    scale: tl.tensor,
    features: tl.tensor,
    live_n: tl.tensor,
    bias_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    stride_bias: tl.tensor,
    stride_weight_scale: tl.tensor,
) -> tl.tensor:
    """Sums of features multiplied by their scales, plus the bias."""
    acc = acc * scale
    if weight_scale_ptr is not None:
        scales = tl.load(weight_scale_ptr + features * stride_weight_scale, mask=live_n, other=0.0)
        acc = acc * scales[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + features * stride_bias, mask=live_n, other=0.0)
        acc = acc + bias.to(tl.float32)[None, :]
    return acc
