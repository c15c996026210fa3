"""Device functions of the matmul kernels: the epilogue of a tile, from sums to what is stored."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .interpreter import patch_interpreter

patch_interpreter()


class Epilogue(NamedTuple):
    """Tensors, strides and numbers of the epilogue: one argument of its functions instead of thirty.

    A pointer is None where the call has no such tensor; strides are in elements, 0 where all share one.
    With gate and up, strides between features are between their pairs.

    Attributes:
        out_ptr: result [batch, rows, columns].
        stride_out_batch: of the result, as the next two.
        stride_out_row: between rows.
        stride_out_column: between columns.
        bias_ptr: [batch, features], or None.
        stride_bias_batch: of the bias.
        stride_bias: between features.
        up_bias_ptr: the bias of up features, with the strides of the gate's; None without gate.
        x_scale_ptr: [batch, rows], or None.
        stride_x_scale_batch: of the scales of x.
        stride_x_scale: between rows.
        weight_scale_ptr: [batch, features], or None.
        stride_weight_scale_batch: of the scales of the weight.
        stride_weight_scale: between features.
        up_weight_scale_ptr: the scales of up features, likewise.
        residual_ptr: [batch, rows, columns], added to what the activation gives, or None.
        stride_residual_batch: of the residual, as the next two.
        stride_residual_row: between rows.
        stride_residual_column: between columns.
        residual_factor: multiplies the residual.
        factor: multiplies all sums.
        rows: M of each batch.
        features: rows of the weight.
        partial_ptr: partial sums in float32 or int32 [splits, BLOCK_M, BLOCK_N], or None without split-K.
    """

    out_ptr: tl.tensor
    stride_out_batch: tl.tensor
    stride_out_row: tl.tensor
    stride_out_column: tl.tensor
    bias_ptr: tl.tensor
    stride_bias_batch: tl.tensor
    stride_bias: tl.tensor
    up_bias_ptr: tl.tensor
    x_scale_ptr: tl.tensor
    stride_x_scale_batch: tl.tensor
    stride_x_scale: tl.tensor
    weight_scale_ptr: tl.tensor
    stride_weight_scale_batch: tl.tensor
    stride_weight_scale: tl.tensor
    up_weight_scale_ptr: tl.tensor
    residual_ptr: tl.tensor
    stride_residual_batch: tl.tensor
    stride_residual_row: tl.tensor
    stride_residual_column: tl.tensor
    residual_factor: tl.tensor
    factor: tl.tensor
    rows: tl.tensor
    features: tl.tensor
    partial_ptr: tl.tensor


@triton.jit  # type: ignore[untyped-decorator]
def split_columns(acc: tl.tensor) -> tl.tuple:
    """Left and right half of the columns; in this form Triton loads either half from tensor memory alone."""
    return tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2)), (0, 2, 1)))


@triton.jit  # type: ignore[untyped-decorator]
def gate_and_up(acc: tl.tensor, UP_FIRST: tl.constexpr) -> tl.tuple:
    """Gate and up sums of a tile that holds them in halves."""
    gate, up = split_columns(acc)
    if UP_FIRST:
        gate, up = up, gate
    return gate, up


@triton.jit  # type: ignore[untyped-decorator]
def store_output(
    acc: tl.tensor,
    batch: tl.tensor,
    offs_m: tl.tensor,
    first_n: tl.tensor,
    epilogue: Epilogue,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SWIGLU_ALPHA: tl.constexpr,
    SWIGLU_BETA: tl.constexpr,
    SWIGLU_LIMIT: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Fused epilogue in float32: scales, bias, activation, residual; then one rounding and the store.

    `acc` [rows, BLOCK_N] holds the sums of features first_n, first_n + 1, ...; only the first COLUMNS belong
    to this tile. If GATED, gate and up sums of a column are neighbours, and half as many columns are stored:
    ACTIVATION of the gate times up, as `activated` and `limited` say.
    """
    PAIR: tl.constexpr = 2 if GATED else 1
    lanes_n = tl.arange(0, acc.shape[1] // PAIR)
    offs_n = first_n // PAIR + lanes_n
    live_m = offs_m < epilogue.rows
    live_n = (offs_n < epilogue.features // PAIR) & (lanes_n < COLUMNS // PAIR)
    batch_index, columns = batch.to(tl.int64), offs_n.to(tl.int64)
    scale = tl.full((1, 1), 1.0, tl.float32) * epilogue.factor
    if epilogue.x_scale_ptr is not None:
        x_scale_ptrs = epilogue.x_scale_ptr + batch_index * epilogue.stride_x_scale_batch
        x_scale_ptrs += offs_m * epilogue.stride_x_scale
        scale = scale * tl.load(x_scale_ptrs, mask=live_m, other=0.0).to(tl.float32)[:, None]
    if GATED:
        acc, up = tl.split(tl.reshape(acc, (acc.shape[0], acc.shape[1] // 2, 2)))
        up = _scaled(up, scale, batch_index, columns, live_n, epilogue, UP=True)
    if epilogue.out_ptr.dtype.element_ty != tl.int32:  # int32 sums are stored as they are
        acc = _scaled(acc, scale, batch_index, columns, live_n, epilogue, UP=False)
    if GATED and SWIGLU_LIMIT is not None:
        acc = tl.where(acc > SWIGLU_LIMIT, SWIGLU_LIMIT, acc)  # NaN stays
        up = tl.where(up > SWIGLU_LIMIT, SWIGLU_LIMIT, tl.where(up < -SWIGLU_LIMIT, -SWIGLU_LIMIT, up))
    acc = activated(acc, ACTIVATION, SWIGLU_ALPHA)
    if GATED:
        acc = acc * (up + SWIGLU_BETA) if SWIGLU_BETA != 0.0 else acc * up
    live = live_m[:, None] & live_n[None, :]
    if epilogue.residual_ptr is not None:
        residual_ptrs = (
            epilogue.residual_ptr
            + batch_index * epilogue.stride_residual_batch
            + offs_m.to(tl.int64)[:, None] * epilogue.stride_residual_row
            + columns[None, :] * epilogue.stride_residual_column
        )
        residual = tl.load(residual_ptrs, mask=live, other=0.0).to(tl.float32)
        acc = acc + residual * epilogue.residual_factor
    out_ptrs = (
        epilogue.out_ptr
        + batch_index * epilogue.stride_out_batch
        + offs_m.to(tl.int64)[:, None] * epilogue.stride_out_row
        + columns[None, :] * epilogue.stride_out_column
    )
    tl.store(out_ptrs, acc.to(epilogue.out_ptr.dtype.element_ty), mask=live)


@triton.jit  # type: ignore[untyped-decorator]
def activated(x: tl.tensor, ACTIVATION: tl.constexpr, SWIGLU_ALPHA: tl.constexpr) -> tl.tensor:
    """A function of each element, in float32: an activation of `matmul_operands.ACTIVATIONS`.

    "silu" is x sigmoid(SWIGLU_ALPHA x). "gelu_tanh" is 0.5 x (1 + tanh(u)) = x sigmoid(2 u) with
    u = sqrt(2 / pi) (x + 0.044715 x^3). NaN stays NaN.
    """
    if ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x * SWIGLU_ALPHA)) if SWIGLU_ALPHA != 1.0 else x / (1.0 + tl.exp(-x))
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    if ACTIVATION == "relu" or ACTIVATION == "relu_squared":  # noqa: PLR1714  (Triton has no `in`)
        x = tl.where(x < 0.0, 0.0, x)
    if ACTIVATION == "relu_squared":
        x = x * x
    return x


@triton.jit  # type: ignore[untyped-decorator]
def store_item(
    acc: tl.tensor,
    split: tl.tensor,
    batch: tl.tensor,
    offs_m: tl.tensor,
    first_n: tl.tensor,
    epilogue: Epilogue,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SWIGLU_ALPHA: tl.constexpr,
    SWIGLU_BETA: tl.constexpr,
    SWIGLU_LIMIT: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    SLICES: tl.constexpr,
    LANE: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Epilogue of an item: stores a whole tile's output, or the partial sums of K split `split` >= 0.

    `acc` starts at column LANE of the tile. Columns are stored in SLICES slices, one after another, so that
    scales, bias and addresses take fewer registers.
    """
    if SLICES > 1:
        HALF: tl.constexpr = acc.shape[1] // 2
        left, right = split_columns(acc)
        store_item(
            left, split, batch, offs_m, first_n, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA, SWIGLU_BETA,
            SWIGLU_LIMIT, HALF, SPLIT, SLICES // 2, LANE, BLOCK_N,
        )  # fmt: skip
        store_item(
            right, split, batch, offs_m, first_n + HALF, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA,
            SWIGLU_BETA, SWIGLU_LIMIT, HALF, SPLIT, SLICES // 2, LANE + HALF, BLOCK_N,
        )  # fmt: skip
    elif SPLIT and split >= 0:
        lanes_n = tl.arange(0, acc.shape[1])
        live_n = (first_n + lanes_n < epilogue.features) & (lanes_n < COLUMNS)
        tile_offs = tl.arange(0, acc.shape[0])[:, None] * BLOCK_N + LANE + lanes_n[None, :]
        partial_ptrs = epilogue.partial_ptr + split.to(tl.int64) * (acc.shape[0] * BLOCK_N) + tile_offs
        tl.store(partial_ptrs, acc, mask=(offs_m < epilogue.rows)[:, None] & live_n[None, :])
    else:
        store_output(
            acc, batch, offs_m, first_n, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA, SWIGLU_BETA,
            SWIGLU_LIMIT, COLUMNS,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def store_pairs(
    gate: tl.tensor,
    up: tl.tensor,
    split: tl.tensor,
    batch: tl.tensor,
    offs_m: tl.tensor,
    first_n: tl.tensor,
    epilogue: Epilogue,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SWIGLU_ALPHA: tl.constexpr,
    SWIGLU_BETA: tl.constexpr,
    SWIGLU_LIMIT: tl.constexpr,
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
            left_gate, left_up, split, batch, offs_m, first_n, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA,
            SWIGLU_BETA, SWIGLU_LIMIT, HALF, SPLIT, SLICES // 2, LANE, BLOCK_N,
        )  # fmt: skip
        store_pairs(
            right_gate, right_up, split, batch, offs_m, first_n + HALF, epilogue, ACTIVATION, GATED,
            SWIGLU_ALPHA, SWIGLU_BETA, SWIGLU_LIMIT, HALF, SPLIT, SLICES // 2, LANE + HALF, BLOCK_N,
        )  # fmt: skip
    else:
        # One thread has the gate and up sums of a column: no data moves.
        acc = tl.reshape(tl.join(gate, up), (gate.shape[0], 2 * gate.shape[1]))
        store_item(
            acc, split, batch, offs_m, first_n, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA, SWIGLU_BETA,
            SWIGLU_LIMIT, COLUMNS, SPLIT, 1, LANE, BLOCK_N,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(
    acc: tl.tensor,
    scale: tl.tensor,
    batch: tl.tensor,
    features: tl.tensor,
    live_n: tl.tensor,
    epilogue: Epilogue,
    UP: tl.constexpr,
) -> tl.tensor:
    """Sums of features, or with UP of their up features, multiplied by their scales, plus the bias."""
    acc = acc.to(tl.float32) * scale
    if epilogue.weight_scale_ptr is not None:
        scale_ptr = epilogue.up_weight_scale_ptr if UP else epilogue.weight_scale_ptr
        scale_ptrs = scale_ptr + batch * epilogue.stride_weight_scale_batch
        scale_ptrs += features * epilogue.stride_weight_scale
        acc = acc * tl.load(scale_ptrs, mask=live_n, other=0.0).to(tl.float32)[None, :]
    if epilogue.bias_ptr is not None:
        bias_ptr = epilogue.up_bias_ptr if UP else epilogue.bias_ptr
        bias_ptrs = bias_ptr + batch * epilogue.stride_bias_batch + features * epilogue.stride_bias
        acc = acc + tl.load(bias_ptrs, mask=live_n, other=0.0).to(tl.float32)[None, :]
    return acc
