"""Batched prefill matmul: out[m, n] = activation(sum over k of x[m, k] weight[n, k], scaled, plus bias[n]).

The rows of x are the tokens of one prompt, so M = tokens, N = out_features, K = in_features.
Operations: 2 M N K. Minimum bytes: those of M K + N K + M N elements. With M in the thousands the operations
per byte, about M, are far above the balance point of a GPU, so the tensor cores are the bound. With few rows
nearly all bytes are the N K elements of the weight, and DRAM bandwidth is the bound.

A work item is a [BLOCK_M, BLOCK_N] tile of the output, or one K split of such a tile. Items run in grouped
(swizzled) order, in groups of GROUP_M row blocks, so that tiles that run at once share rows of x and weight
in L2. If there are too few tiles to fill the GPU, or wave quantization would leave most SMs idle in the tail
wave, tiles are split along K (split-K; a stream-K-like tail): each split stores float32 partial sums in a
workspace, and a reduction kernel adds them in a fixed order. Without atomics the result has the same bits
every run.

There are two matmul kernels. One loads through pointers (cp.async), on any GPU and with any strides. The
other is persistent and loads whole tiles with the TMA (tensor memory accelerator) of sm_90 and newer: each
CTA loops over tiles. On sm_100 it can use warp specialization: some warps load, one issues the tensor-core
instructions, others store.

This file is over 400 lines because three kernels and the only function that launches them belong together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import matmul_checks as checks
from .float8 import E4M3_BITS_FACTOR
from .gpu_limits import gpu_limits
from .interpreter import patch_interpreter
from .launch import allocate, cached_launches, forbid_repetition, launch
from .matmul_block_scales import BlockScaleTensors, block_factors, no_factors, promoted, scale_pointers
from .matmul_epilogue import Epilogue, gate_and_up, store_item, store_output, store_pairs
from .matmul_operands import (
    GATED_ACTIVATIONS,
    HALVES,
    NO_PAIR,
    Pair,
    feature_vector,
    gate_of,
    residual_matrices,
    result_matrices,
    row_vector,
    varies_by_batch,
)
from .matmul_plan import MatmulPlan, plan_matmul
from .matmul_tile import accumulate, load_tile, rows_of_columns, tile_of_item
from .scale_factors import matmul_factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .matmul_tiling import MatmulTiling

patch_interpreter()

_REDUCE_ELEMENTS = 1024
_SLICE_COLUMNS = 64


@triton.jit  # type: ignore[untyped-decorator]
def _matmul_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    up_weight_ptr: tl.tensor,  # noqa: ARG001  (read through weight_ptr)
    bias_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    factor: tl.tensor,
    residual_factor: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    in_features: tl.tensor,
    whole_tiles: tl.tensor,
    stride_x_batch: tl.tensor,
    stride_x_row: tl.tensor,
    stride_x_k: tl.tensor,
    stride_weight_batch: tl.tensor,
    stride_weight_row: tl.tensor,
    weight_up_offset: tl.tensor,
    stride_weight_k: tl.tensor,
    stride_bias_batch: tl.tensor,
    stride_bias: tl.tensor,
    up_bias_ptr: tl.tensor,
    stride_x_scale_batch: tl.tensor,
    stride_x_scale: tl.tensor,
    stride_weight_scale_batch: tl.tensor,
    stride_weight_scale: tl.tensor,
    up_weight_scale_ptr: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_residual_batch: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    stride_residual_row: tl.tensor,
    stride_residual_column: tl.tensor,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SWIGLU_ALPHA: tl.constexpr,
    SWIGLU_BETA: tl.constexpr,
    SWIGLU_LIMIT: tl.constexpr,
    FLOAT8_BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,
    SLICES: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
    x_block_ptr: tl.tensor,
    weight_block_ptr: tl.tensor,
    stride_x_block_batch: tl.tensor,
    stride_x_block_row: tl.tensor,
    stride_x_block_k: tl.tensor,
    stride_weight_block_batch: tl.tensor,
    stride_weight_block_row: tl.tensor,
    stride_weight_block_k: tl.tensor,
    INTEGER: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
    X_BLOCK_K: tl.constexpr,
    WEIGHT_BLOCK_K: tl.constexpr,
    WEIGHT_BLOCK_N: tl.constexpr,
    HALVES: tl.constexpr,
) -> None:
    """One work item per CTA; loads operands through pointers (cp.async).

    The software pipeline advances two scalar base pointers. Lanes keep 32-bit offsets from them; 64-bit ones
    if WIDE says that a tile spans 2^31 elements. Up rows of a gated weight are `weight_up_offset` elements
    past their gate rows; `up_weight_ptr` names the tensor they are in if it is another one.
    """
    item = tl.program_id(0)
    blocks_m = tl.cdiv(rows, BLOCK_M)
    blocks_n = tl.cdiv(features, COLUMNS)
    batch, block_m, block_n, first_k, last_k = tile_of_item(
        item, whole_tiles, blocks_m, blocks_n, tl.cdiv(in_features, BLOCK_K), GROUP_M, NUM_SPLITS
    )
    PART_K: tl.constexpr = BLOCK_K // max(1, PROMOTED_PARTS)
    lanes_m, lanes_n, offs_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, PART_K)
    row, feature = block_m * BLOCK_M, block_n * COLUMNS
    live_m = row + lanes_m < rows
    live_n = feature + lanes_n < features
    if COLUMNS < BLOCK_N:
        live_n = live_n & (lanes_n < COLUMNS)
    kind = tl.int64 if WIDE else tl.int32
    weight_row, weight_rows, scale_row, scale_lanes = rows_of_columns(
        feature.to(tl.int64), lanes_n.to(kind), features, stride_weight_row, weight_up_offset, GATED, HALVES
    )
    x_offs = (
        lanes_m.to(kind)[:, None] * stride_x_row + offs_k.to(kind)[None, :] * stride_x_k
    )  # [BLOCK_M, PART_K]
    weight_offs = weight_rows[:, None] + offs_k.to(kind)[None, :] * stride_weight_k  # [BLOCK_N, PART_K]
    start_k = (first_k * BLOCK_K).to(tl.int64)
    x_base = x_ptr + batch.to(tl.int64) * stride_x_batch + start_k * stride_x_k
    x_base += row.to(tl.int64) * stride_x_row
    weight_base = weight_ptr + batch.to(tl.int64) * stride_weight_batch + start_k * stride_weight_k
    weight_base += weight_row * stride_weight_row
    step_k = tl.full((), PART_K, tl.int64)

    scales = BlockScaleTensors(
        x_block_ptr, stride_x_block_batch, stride_x_block_row, stride_x_block_k,
        weight_block_ptr, stride_weight_block_batch, stride_weight_block_row, stride_weight_block_k,
    )  # fmt: skip
    pointers = scale_pointers(scales, batch, row, scale_row, features // 2, BLOCK_SCALES, WEIGHT_BLOCK_N)
    none = no_factors(BLOCK_M, BLOCK_N, BLOCK_SCALES)
    acc = tl.zeros(
        (BLOCK_N, BLOCK_M) if WEIGHT_FIRST else (BLOCK_M, BLOCK_N),
        dtype=tl.int32 if INTEGER and PROMOTED_PARTS == 0 else tl.float32,
    )
    pending = tl.zeros(acc.shape, dtype=tl.int32 if INTEGER else tl.float32)
    pending_factors = none
    for k_tile in range(first_k, last_k):
        for part in tl.static_range(BLOCK_K // PART_K):
            k = k_tile * BLOCK_K + part * PART_K
            live_k = offs_k < in_features - k
            factors = block_factors(
                none, scales, pointers, rows - row, scale_row + scale_lanes, live_n, k, in_features,
                BLOCK_SCALES, X_BLOCK_K, WEIGHT_BLOCK_K, WEIGHT_BLOCK_N,
            )  # fmt: skip
            x = load_tile(x_base + x_offs, live_m, live_k, EVEN_M, EVEN_K)
            weight = load_tile(weight_base + weight_offs, live_n, live_k, EVEN_N, EVEN_K)
            acc, pending, pending_factors = accumulate(
                x, weight, acc, pending, WEIGHT_FIRST, FLOAT8_BITS, PRECISION, PROMOTED_PARTS,
                factors, pending_factors, BLOCK_SCALES,
            )  # fmt: skip
            x_base += step_k * stride_x_k
            weight_base += step_k * stride_weight_k
    if PROMOTED_PARTS > 1:
        acc = promoted(acc, pending, pending_factors, WEIGHT_FIRST, BLOCK_SCALES)

    if WEIGHT_FIRST:
        acc = tl.trans(acc)
    epilogue = Epilogue(
        out_ptr, stride_out_batch, stride_out_row, stride_out_column, bias_ptr, stride_bias_batch,
        stride_bias, up_bias_ptr, x_scale_ptr, stride_x_scale_batch, stride_x_scale, weight_scale_ptr,
        stride_weight_scale_batch, stride_weight_scale, up_weight_scale_ptr, residual_ptr,
        stride_residual_batch, stride_residual_row, stride_residual_column, residual_factor, factor, rows,
        features, partial_ptr,
    )  # fmt: skip
    store_item(
        acc, item - whole_tiles, batch, row + lanes_m, feature, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA,
        SWIGLU_BETA, SWIGLU_LIMIT, COLUMNS, NUM_SPLITS > 1, SLICES, 0, BLOCK_N,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _tma_kernel(
    x_desc: tl.tensor,
    weight_desc: tl.tensor,
    up_weight_ptr: tl.tensor,  # noqa: ARG001  (read through weight_ptr)
    bias_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    factor: tl.tensor,
    residual_factor: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    in_features: tl.tensor,
    whole_tiles: tl.tensor,
    items: tl.tensor,
    stride_bias: tl.tensor,
    up_bias_ptr: tl.tensor,
    stride_x_scale: tl.tensor,
    stride_weight_scale: tl.tensor,
    up_weight_scale_ptr: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    stride_residual_row: tl.tensor,
    stride_residual_column: tl.tensor,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SWIGLU_ALPHA: tl.constexpr,
    SWIGLU_BETA: tl.constexpr,
    SWIGLU_LIMIT: tl.constexpr,
    PRECISION: tl.constexpr,
    PROMOTED_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,
    FLATTEN: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
    SLICES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    x_block_ptr: tl.tensor,
    weight_block_ptr: tl.tensor,
    stride_x_block_batch: tl.tensor,
    stride_x_block_row: tl.tensor,
    stride_x_block_k: tl.tensor,
    stride_weight_block_batch: tl.tensor,
    stride_weight_block_row: tl.tensor,
    stride_weight_block_k: tl.tensor,
    INTEGER: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
    X_BLOCK_K: tl.constexpr,
    WEIGHT_BLOCK_K: tl.constexpr,
    WEIGHT_BLOCK_N: tl.constexpr,
    HALVES: tl.constexpr,
    UP_FIRST: tl.constexpr,
) -> None:
    """Persistent kernel: each CTA loops over work items, assigned round-robin; the TMA loads the operands.

    HALVES says that the weight's descriptor is of 3 dimensions: gate and up rows, UP_FIRST in that order.

    FLATTEN merges the tile loop and the K loop, so that the loads of the next tile overlap the epilogue of
    this one. WARP_SPECIALIZE is "none", "tiles" for that merged loop, or "steps" for the K loop: with scales
    per block of K the warps that add products would otherwise also work out the next tile in each step. The
    epilogue stores columns in SLICES slices, which takes fewer registers.
    """
    blocks_m = tl.cdiv(rows, BLOCK_M)
    blocks_n = tl.cdiv(features, BLOCK_N)
    k_tiles = tl.cdiv(in_features, BLOCK_K)
    epilogue = Epilogue(
        out_ptr, 0, stride_out_row, stride_out_column, bias_ptr, 0, stride_bias,
        up_bias_ptr, x_scale_ptr, 0, stride_x_scale, weight_scale_ptr,
        0, stride_weight_scale, up_weight_scale_ptr, residual_ptr,
        0, stride_residual_row, stride_residual_column, residual_factor, factor, rows, features,
        partial_ptr,
    )  # fmt: skip
    PART_K: tl.constexpr = BLOCK_K // max(1, PROMOTED_PARTS)
    for index in tl.range(
        tl.program_id(0),
        items,
        tl.num_programs(0),
        flatten=FLATTEN,
        warp_specialize=WARP_SPECIALIZE == "tiles",
    ):
        item = tl.cast(index, tl.int32)
        batch, block_m, block_n, first_k, last_k = tile_of_item(
            item, whole_tiles, blocks_m, blocks_n, k_tiles, GROUP_M, NUM_SPLITS
        )
        row, feature = block_m * BLOCK_M, block_n * BLOCK_N
        acc = tl.zeros(
            (BLOCK_N, BLOCK_M) if WEIGHT_FIRST else (BLOCK_M, BLOCK_N),
            dtype=tl.int32 if INTEGER and PROMOTED_PARTS == 0 else tl.float32,
        )
        if NUM_SPLITS == 1:
            first_k = 0
            last_k = k_tiles
        offs_m, lanes_n = row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        weight_row = feature
        if HALVES:
            weight_row = feature // 2
            lanes_n = lanes_n % (BLOCK_N // 2) + lanes_n // (BLOCK_N // 2) * (features // 2)
        live_n = weight_row + lanes_n < features
        scales = BlockScaleTensors(
            x_block_ptr, stride_x_block_batch, stride_x_block_row, stride_x_block_k,
            weight_block_ptr, stride_weight_block_batch, stride_weight_block_row, stride_weight_block_k,
        )  # fmt: skip
        pointers = scale_pointers(scales, batch, row, weight_row, features // 2, BLOCK_SCALES, WEIGHT_BLOCK_N)
        none = no_factors(BLOCK_M, BLOCK_N, BLOCK_SCALES)
        pending = tl.zeros(acc.shape, dtype=tl.int32 if INTEGER else tl.float32)
        pending_factors = none
        for k_tile in tl.range(
            first_k, last_k, num_stages=NUM_STAGES, warp_specialize=WARP_SPECIALIZE == "steps"
        ):
            for part in tl.static_range(BLOCK_K // PART_K):
                k = k_tile * BLOCK_K + part * PART_K
                factors = block_factors(
                    none, scales, pointers, rows - row, weight_row + lanes_n, live_n, k, in_features,
                    BLOCK_SCALES, X_BLOCK_K, WEIGHT_BLOCK_K, WEIGHT_BLOCK_N,
                )  # fmt: skip
                x = x_desc.load([row, k])
                if HALVES:
                    halves = weight_desc.load([0, feature // 2, k])  # [2, BLOCK_N / 2, PART_K]
                    weight = tl.reshape(halves, (BLOCK_N, PART_K))
                else:
                    weight = weight_desc.load([feature, k])
                acc, pending, pending_factors = accumulate(
                    x, weight, acc, pending, WEIGHT_FIRST, False, PRECISION, PROMOTED_PARTS,
                    factors, pending_factors, BLOCK_SCALES,
                )  # fmt: skip
        if PROMOTED_PARTS > 1:
            acc = promoted(acc, pending, pending_factors, WEIGHT_FIRST, BLOCK_SCALES)
        if WEIGHT_FIRST:
            acc = tl.trans(acc)
        if HALVES:
            gate, up = gate_and_up(acc, UP_FIRST)
            store_pairs(
                gate, up, item - whole_tiles, batch, offs_m, feature, epilogue, ACTIVATION, GATED,
                SWIGLU_ALPHA, SWIGLU_BETA, SWIGLU_LIMIT, BLOCK_N, NUM_SPLITS > 1, SLICES, 0, BLOCK_N,
            )  # fmt: skip
        else:
            store_item(
                acc, item - whole_tiles, batch, offs_m, feature, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA,
                SWIGLU_BETA, SWIGLU_LIMIT, BLOCK_N, NUM_SPLITS > 1, SLICES, 0, BLOCK_N,
            )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _split_k_reduce_kernel(
    partial_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    weight_scale_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    out_ptr: tl.tensor,
    factor: tl.tensor,
    residual_factor: tl.tensor,
    rows: tl.tensor,
    features: tl.tensor,
    whole_tiles: tl.tensor,
    stride_bias_batch: tl.tensor,
    stride_bias: tl.tensor,
    up_bias_ptr: tl.tensor,
    stride_x_scale_batch: tl.tensor,
    stride_x_scale: tl.tensor,
    stride_weight_scale_batch: tl.tensor,
    stride_weight_scale: tl.tensor,
    up_weight_scale_ptr: tl.tensor,
    stride_out_batch: tl.tensor,
    stride_residual_batch: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    stride_residual_row: tl.tensor,
    stride_residual_column: tl.tensor,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SWIGLU_ALPHA: tl.constexpr,
    SWIGLU_BETA: tl.constexpr,
    SWIGLU_LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    REDUCE_M: tl.constexpr,
) -> None:
    """Split-K reduction: adds the partial sums of REDUCE_M rows of a tile in K order, then the epilogue."""
    blocks_m = tl.cdiv(rows, BLOCK_M)
    blocks_n = tl.cdiv(features, COLUMNS)
    tile = tl.program_id(0)
    batch, block_m, block_n, _, _ = tile_of_item(
        tile + whole_tiles, whole_tiles, blocks_m, blocks_n, blocks_n, GROUP_M, 1
    )
    lanes_m = tl.program_id(1) * REDUCE_M + tl.arange(0, REDUCE_M)
    lanes_n = tl.arange(0, BLOCK_N)
    offs_m, feature = block_m * BLOCK_M + lanes_m, block_n * COLUMNS
    live = (offs_m < rows)[:, None] & ((feature + lanes_n < features) & (lanes_n < COLUMNS))[None, :]

    partial_ptrs = partial_ptr + tile.to(tl.int64) * (NUM_SPLITS * BLOCK_M * BLOCK_N)
    partial_ptrs += lanes_m[:, None] * BLOCK_N + lanes_n[None, :]  # [REDUCE_M, BLOCK_N]
    acc = tl.zeros((REDUCE_M, BLOCK_N), dtype=partial_ptr.dtype.element_ty)
    for _ in range(NUM_SPLITS):
        acc += tl.load(partial_ptrs, mask=live, other=0)
        partial_ptrs += BLOCK_M * BLOCK_N
    epilogue = Epilogue(
        out_ptr, stride_out_batch, stride_out_row, stride_out_column, bias_ptr, stride_bias_batch,
        stride_bias, up_bias_ptr, x_scale_ptr, stride_x_scale_batch, stride_x_scale, weight_scale_ptr,
        stride_weight_scale_batch, stride_weight_scale, up_weight_scale_ptr, residual_ptr,
        stride_residual_batch, stride_residual_row, stride_residual_column, residual_factor, factor, rows,
        features, None,
    )  # fmt: skip
    store_output(
        acc, batch, offs_m, feature, epilogue, ACTIVATION, GATED, SWIGLU_ALPHA, SWIGLU_BETA, SWIGLU_LIMIT,
        COLUMNS,
    )  # fmt: skip


@cached_launches
def prefill_matmul(
    x: torch.Tensor,
    weight: torch.Tensor | Pair,
    *,
    bias: torch.Tensor | Pair | None = None,
    activation: str | None = None,
    x_scale: torch.Tensor | float | None = None,
    weight_scale: torch.Tensor | Pair | float | None = None,
    out_dtype: torch.dtype | None = None,
    precision: str = "ieee",
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    tiling: MatmulTiling | None = None,
    gate_up: str = "halves",
    swiglu_alpha: float = 1.0,
    swiglu_beta: float = 0.0,
    swiglu_limit: float | None = None,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
) -> torch.Tensor:
    """Activation of (x @ weight.T, scaled, + bias), + residual; summed in float32 and rounded once.

    Not differentiable. Results have the same bits every run. Operands keep their strides: nothing is copied,
    except an `x` whose leading dimensions cannot be viewed as [batch, rows], and scales of x or a residual
    that cannot be viewed alike. Without elements in the result nothing is launched.

    Args:
        x: [..., in_features], bfloat16, float16, float32, float8_e4m3fn, float8_e5m2 or int8.
        weight: [out_features, in_features], or a transposed view of that shape. [batch, out_features,
            in_features] with `x` [batch, tokens, in_features] gives each batch its own weight. Dtypes as
            `x`; of float8 any two; or one operand is narrower and is converted to the dtype of the other,
            which holds its values exactly: float8 or int8 beside bfloat16, float16 or float32, and 16-bit
            floats beside float32. A gated activation takes gate and up rows, 2 out_features in all: in one
            weight, in the order that `gate_up` says, or as a pair (gate, up) of weights of one shape.
        bias: of features, the rows of `weight`: [features], [1, features], [batch, 1, features] or
            [batch, features], any floating dtype. With a pair of weights also a pair. None adds nothing.
        activation: None, "silu", "gelu" (exact, with erf), "gelu_tanh", "relu", "relu_squared"; or, gated,
            act(gate) x up: "swiglu" (silu), "geglu" (gelu), "geglu_tanh", "reglu" (relu) and "bilinear"
            (gate x up).
        x_scale: dequantisation scale of `x`: a number, or a tensor of any floating dtype: of one element,
            or one per row: the shape of `x` without in_features, or with 1 in its place; its other sizes
            may be 1 as well. Or one per row and block of in_features: the shape of `x` with the number of
            blocks in place of in_features, two or more, any strides. Blocks hold a power of two of elements,
            32 or more, which follows from their number; the last may be partial. The weight must have 8 bits.
        weight_scale: dequantisation scale of `weight`: a number, or a tensor of any floating dtype: of one
            element, or one per feature (output channel): [features], [1, features], [features, 1] or
            [batch, features]; or [batch, 1, features], [batch, features, 1], [batch, 1, 1]. With a pair of
            weights also a pair of tensors. Or, of one weight of 8 bits, one per block of features and of
            in_features, any strides: [blocks of features, blocks of in_features], both powers of two; [batch,
            ...] if the weight is batched. A last dimension of `features` means features.
        out_dtype: bfloat16, float16 or float32; None means that of `out`, else that of the wider operand,
            or bfloat16 if both have 8 bits. int32 of int8 operands without bias, scales, activation and
            residual gives their exact sums.
        precision: of float32 products: "ieee"; "tf32", which multiplies with 10 bits of mantissa; or
            "tf32x3", three tf32 products, nearly as exact as IEEE.
        out: output tensor [..., out_features], `out_dtype`, not overlapping the inputs, but it may be
            `residual`. None allocates.
        workspace: contiguous memory for split-K partial sums, of any dtype, at least
            `prefill_matmul_workspace_bytes` long and aligned to 16 bytes, not shared with a call that
            may run at the same time. With it and `out` nothing is allocated. None allocates.
        tiling: tile sizes and split-K; None means those of `choose_matmul_tiling`. A variant that the
            GPU or the operands' strides do not allow falls back to "pointers".
        gate_up: rows of one weight for a gated activation: "halves", first those of the gate, then those of
            the up projection; or "interleaved", gate and up in turn. Bias and weight scales likewise.
        swiglu_alpha: "swiglu" is gate sigmoid(alpha gate) (up + beta). gpt-oss: "interleaved", alpha 1.702,
            beta 1 and limit 7.
        swiglu_beta: see `swiglu_alpha`.
        swiglu_limit: "swiglu" clamps gate from above, and up to -limit..limit, first. None does not.
        residual: added after the activation: any floating dtype, a shape that broadcasts to that of the
            result. It may be `out`, which accumulates. None adds nothing.
        residual_scale: multiplies the residual. (The alpha of BLAS is a number as `x_scale`; its beta is
            this one. 0 does not read the residual.)

    Returns:
        [..., out_features], `out_dtype`.

    Raises:
        ValueError: an argument has the wrong shape, strides, dtype, device or size; or tensors are on the
            CPU while Triton compiles its kernels.
    """
    options: dict[str, Any] = {
        "bias": bias,
        "activation": activation,
        "x_scale": x_scale,
        "weight_scale": weight_scale,
        "precision": precision,
        "gate_up": gate_up,
        "swiglu_alpha": swiglu_alpha,
        "swiglu_beta": swiglu_beta,
        "swiglu_limit": swiglu_limit,
        "residual": residual,
        "residual_scale": residual_scale,
    }
    checks.check_prefill_matmul(x=x, weight=weight, **options, out_dtype=out_dtype, out=out, tiling=tiling)
    plan = _plan(x, weight, tiling, options)
    workspace_bytes = plan.workspace_bytes if plan is not None else 0
    if workspace is not None:
        checks.check_workspace(workspace, at_least_bytes=workspace_bytes, same_device_as=("x", x))
    elif workspace_bytes:
        workspace = allocate((workspace_bytes,), torch.uint8, x.device)
    if out is None:
        columns = checks.result_features(weight, activation)
        dtype = out_dtype or checks.default_out_dtype(x, gate_of(weight))
        out = allocate((*x.shape[:-1], columns), dtype, x.device)
    if plan is not None:
        _launch(plan, x.shape, out=out, workspace=workspace, **options)
    return out


def prefill_matmul_workspace_bytes(x: torch.Tensor, weight: torch.Tensor | Pair, **options: Any) -> int:
    """Bytes of `workspace` that `prefill_matmul` needs, from shapes alone.

    Takes the arguments of `prefill_matmul` except `workspace`, and checks them alike.

    Raises:
        ValueError: as `prefill_matmul`.
    """
    checks.check_prefill_matmul(x=x, weight=weight, **options)
    plan = _plan(x, weight, options.get("tiling"), options)
    return plan.workspace_bytes if plan is not None else 0


def _plan(
    x: torch.Tensor, weight: torch.Tensor | Pair, tiling: MatmulTiling | None, options: Mapping[str, Any]
) -> MatmulPlan | None:
    """The plan of a call with checked arguments; None where the result has no elements."""
    if 0 in x.shape[:-1] or 0 in gate_of(weight).shape[:-1]:
        return None
    return plan_matmul(
        x,
        weight,
        options.get("activation"),
        options.get("gate_up", "halves"),
        options.get("precision", "ieee"),
        tiling,
        gpu_limits(x.device),
        options.get("x_scale"),
        options.get("weight_scale"),
        by_batch=any(varies_by_batch(options.get(name), x, weight) for name in ("bias", "weight_scale")),
    )


def _launch(
    plan: MatmulPlan,
    rows_of_x: torch.Size,
    *,
    out: torch.Tensor,
    workspace: torch.Tensor | None,
    precision: str,
    **options: Any,
) -> None:
    """Launches the matmul kernel and, if tiles are split along K, the reduction kernel."""
    x, weight, tiling = plan.x, plan.weight, plan.tiling
    if plan.up_weight is not None:
        forbid_repetition()  # offsets from gate to up are differences of addresses
    if plan.float8_bits:
        x, weight = _e4m3_codes(x), _e4m3_codes(weight)
    vectors, batches = _epilogue_tensors(plan, rows_of_x, out=out, **options)
    epilogue = vectors | {
        "partial_ptr": workspace.view(-1)
        .view(torch.uint8)[: plan.workspace_bytes]
        .view(torch.int32 if plan.integer_sums else torch.float32)
        if workspace is not None and plan.split_tiles
        else None,
        "rows": x.shape[1],
        "features": plan.features,
        "whole_tiles": plan.whole_tiles,
        "ACTIVATION": GATED_ACTIVATIONS.get(options["activation"], options["activation"]),
        "GATED": plan.layout != NO_PAIR,
        "SWIGLU_ALPHA": float(options["swiglu_alpha"]),
        "SWIGLU_BETA": float(options["swiglu_beta"]),
        "SWIGLU_LIMIT": None if options["swiglu_limit"] is None else float(options["swiglu_limit"]),
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "GROUP_M": tiling.group_m,
        "enable_fp_fusion": True,
    }
    # Three accumulators leave few registers for the epilogue. A row of a slice is 32 bytes of output or more.
    slice_columns = _SLICE_COLUMNS if plan.promoted_parts <= 1 else 32 if plan.layout else 16
    if plan.blocks is not None and plan.promoted_parts == 1:
        # With slices LLVM pairs sums that are not neighbours for packed additions, and moves each product.
        slice_columns = tiling.block_n
    product = {
        "in_features": x.shape[2],
        "PRECISION": precision,
        "PROMOTED_PARTS": plan.promoted_parts,
        "BLOCK_K": tiling.block_k,
        "NUM_SPLITS": tiling.num_splits if plan.split_tiles else 1,
        "WEIGHT_FIRST": tiling.weight_first,
        "SLICES": 1 if tiling.columns or tiling.weight_first else max(1, tiling.block_n // slice_columns),
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
        "maxnreg": tiling.max_registers,
        "INTEGER": plan.integer_products,
        **_block_arguments(plan),
    }
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if tiling.variant == "pointers":
            launch(
                _matmul_kernel,
                (plan.items,),
                **epilogue,
                **batches,
                **product,
                x_ptr=x,
                weight_ptr=weight,
                up_weight_ptr=plan.up_weight,
                stride_x_batch=x.stride(0),
                stride_x_row=x.stride(1),
                stride_x_k=x.stride(2),
                stride_weight_batch=weight.stride(0),
                stride_weight_row=plan.row_stride,
                weight_up_offset=plan.up_offset,
                stride_weight_k=weight.stride(2),
                FLOAT8_BITS=plan.float8_bits,
                EVEN_M=x.shape[1] % tiling.block_m == 0,
                EVEN_N=plan.features % tiling.block_n == 0 and tiling.columns is None,
                EVEN_K=x.shape[2] % tiling.block_k == 0,
                WIDE=plan.wide,
                HALVES=plan.layout == HALVES,
            )
        else:
            specialized = tiling.variant == "warp_specialized" and (
                "tiles" if plan.blocks is None else "steps"
            )
            part_k = tiling.block_k // max(1, plan.promoted_parts)
            launch(
                _tma_kernel,
                (min(tiling.programs, plan.items),),
                **epilogue,
                **product,
                x_desc=TensorDescriptor.from_tensor(x[0], [tiling.block_m, part_k]),
                weight_desc=_weight_descriptor(plan, weight[0], part_k),
                up_weight_ptr=plan.up_weight,
                items=plan.items,
                # A flattened loop needs the same number of K steps in every item.
                FLATTEN=specialized == "tiles" or (plan.flattens and not plan.split_tiles),
                WARP_SPECIALIZE=specialized or "none",
                NUM_STAGES=tiling.num_stages,
                HALVES=plan.layout == HALVES,
                UP_FIRST=plan.layout == HALVES and plan.up_offset < 0,
            )
        if plan.split_tiles:
            live_rows = min(tiling.block_m, triton.next_power_of_2(x.shape[1]))
            reduce_m = max(1, min(live_rows, _REDUCE_ELEMENTS // tiling.block_n))
            launch(
                _split_k_reduce_kernel,
                (plan.split_tiles, triton.cdiv(live_rows, reduce_m)),
                **epilogue,
                **batches,
                NUM_SPLITS=tiling.num_splits,
                REDUCE_M=reduce_m,
                num_warps=4,
            )


def _block_arguments(plan: MatmulPlan) -> dict[str, Any]:
    """The kernels' arguments that describe scales per block of K."""
    blocks = plan.blocks
    x = None if blocks is None else blocks.x
    weight = None if blocks is None else blocks.weight
    x_strides = (0, 0, 0) if x is None else x.stride()
    weight_strides = (0, 0, 0) if weight is None else weight.stride()
    return {
        "x_block_ptr": x,
        "weight_block_ptr": weight,
        "stride_x_block_batch": x_strides[0],
        "stride_x_block_row": x_strides[1],
        "stride_x_block_k": x_strides[2],
        "stride_weight_block_batch": weight_strides[0],
        "stride_weight_block_row": weight_strides[1],
        "stride_weight_block_k": weight_strides[2],
        "BLOCK_SCALES": plan.block_scales,
        "X_BLOCK_K": 1 if blocks is None else blocks.x_block_k,
        "WEIGHT_BLOCK_K": 1 if blocks is None else blocks.weight_block_k,
        "WEIGHT_BLOCK_N": 1 if blocks is None else blocks.weight_block_n,
    }


def _epilogue_tensors(
    plan: MatmulPlan, rows_of_x: torch.Size, *, out: torch.Tensor, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the kernels for result, bias, scales and residual, and those that only batches need."""
    batch, rows, _ = plan.x.shape
    coded = plan.float8_bits * sum(each.dtype == torch.float8_e4m3fn for each in (plan.x, plan.weight))
    blocks = plan.blocks
    factor, x_scale, weight_scale = matmul_factors(
        None if blocks is not None and blocks.x is not None else options["x_scale"],
        None if blocks is not None and blocks.weight is not None else options["weight_scale"],
        operand_factor=E4M3_BITS_FACTOR**coded,
        device=plan.x.device,
    )
    x_scales = row_vector(x_scale, rows_of_x, batch, rows)
    bias, weight_scales = (
        feature_vector(each, batch=batch, features=plan.features, layout=plan.layout)
        for each in (options["bias"], weight_scale)
    )
    result = result_matrices(out, batch, rows)
    residual_scale = float(options["residual_scale"])
    residual = options["residual"] if residual_scale else None
    if residual is not None:
        residual = residual_matrices(residual, out, batch, rows)
    residual_strides = (0, 0, 0) if residual is None else residual.stride()
    tensors = {
        "bias_ptr": bias.values,
        "x_scale_ptr": x_scales.values,
        "weight_scale_ptr": weight_scales.values,
        "residual_ptr": residual,
        "out_ptr": result,
        "factor": factor,
        "residual_factor": residual_scale,
        "stride_bias": bias.stride,
        "up_bias_ptr": bias.up_values,
        "stride_x_scale": x_scales.stride,
        "stride_weight_scale": weight_scales.stride,
        "up_weight_scale_ptr": weight_scales.up_values,
        "stride_out_row": result.stride(1),
        "stride_out_column": result.stride(2),
        "stride_residual_row": residual_strides[1],
        "stride_residual_column": residual_strides[2],
    }
    batches = {
        "stride_bias_batch": bias.batch_stride,
        "stride_x_scale_batch": x_scales.batch_stride,
        "stride_weight_scale_batch": weight_scales.batch_stride,
        "stride_out_batch": result.stride(0),
        "stride_residual_batch": residual_strides[0],
        "COLUMNS": plan.tiling.block_columns,
    }
    return tensors, batches


def _e4m3_codes(operand: torch.Tensor) -> torch.Tensor:
    """Float8 e4m3 as bytes, which GPUs without e4m3 instructions can load."""
    return operand.view(torch.uint8) if operand.dtype == torch.float8_e4m3fn else operand


def _weight_descriptor(plan: MatmulPlan, weight: torch.Tensor, part_k: int) -> TensorDescriptor:
    """TMA descriptor of [block_n, part_k] tiles; of halves [2, block_n / 2, part_k], the lower address first.

    Interleaved gate and up rows are rows like others.
    """
    block_n = plan.tiling.block_n
    if plan.layout != HALVES:
        return TensorDescriptor.from_tensor(weight, [block_n, part_k])
    first = weight
    if plan.up_offset < 0 and plan.up_weight is not None:
        first = plan.up_weight
    shape = [2, plan.features // 2, weight.shape[1]]
    strides = [abs(plan.up_offset), plan.row_stride, 1]
    return TensorDescriptor(first, shape, strides, [2, block_n // 2, part_k])
