"""Batched prefill matmul: out[m, n] = sum over k of x[m, k] weight[n, k], plus bias[n].

One prompt's tokens are the rows of x, so M = tokens, N = out_features, K = in_features.
Operations: 2 M N K. Bytes at least: (M K + N K + M N) elements. With M, N and K in the thousands
the operations to a byte lie far above what a GPU balances, so arithmetic is the bound; with few
rows the weights' N K elements are nearly all the bytes, and bandwidth is.

A program computes one [BLOCK_M, BLOCK_N] tile over its share of K. Programs walk the tiles in
groups of GROUP_M row blocks, so that those running at one time share rows of x and weight in L2.
Where tiles are too few to fill the GPU, K is split: each share leaves float32 partial sums in
a workspace, and a second kernel adds them in a fixed order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import checks
from .interpreter import mend_interpreter
from .tiling import MatmulTiling, choose_matmul_tiling, gpu_limits

mend_interpreter()

_REDUCE_COLUMNS = 512


@triton.jit  # type: ignore[untyped-decorator]
def _tile_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    out_features: tl.tensor,
    in_features: tl.tensor,
    stride_x_row: tl.tensor,
    stride_x_k: tl.tensor,
    stride_weight_row: tl.tensor,
    stride_weight_k: tl.tensor,
    stride_bias: tl.tensor,
    stride_out_split: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """One tile of the product over one share of K; `out` is the result, or the float32 workspace."""
    blocks_m = tl.cdiv(rows, BLOCK_M)
    blocks_n = tl.cdiv(out_features, BLOCK_N)
    tile = tl.program_id(0) // NUM_SPLITS
    split = tl.program_id(0) % NUM_SPLITS
    group_tiles = GROUP_M * blocks_n
    first_m = (tile // group_tiles) * GROUP_M
    group_rows = tl.minimum(blocks_m - first_m, GROUP_M)
    block_m = first_m + (tile % group_tiles) % group_rows
    block_n = (tile % group_tiles) // group_rows

    offs_m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    live_m = offs_m < rows
    live_n = offs_n < out_features

    k_tiles = tl.cdiv(in_features, BLOCK_K)
    tiles_per_split = tl.cdiv(k_tiles, NUM_SPLITS)
    first_k = split * tiles_per_split
    last_k = tl.minimum(first_k + tiles_per_split, k_tiles)

    start_k = (first_k * BLOCK_K).to(tl.int64)
    x_ptrs = (
        x_ptr + offs_m.to(tl.int64)[:, None] * stride_x_row + (start_k + offs_k)[None, :] * stride_x_k
    )  # [BLOCK_M, BLOCK_K]
    weight_ptrs = (
        weight_ptr
        + offs_n.to(tl.int64)[None, :] * stride_weight_row
        + (start_k + offs_k)[:, None] * stride_weight_k
    )  # [BLOCK_K, BLOCK_N]
    step_k = tl.full((), BLOCK_K, tl.int64)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k_tile in range(first_k, last_k):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=live_m[:, None], other=0.0)
            weight = tl.load(weight_ptrs, mask=live_n[None, :], other=0.0)
        else:
            live_k = offs_k < in_features - k_tile * BLOCK_K
            x = tl.load(x_ptrs, mask=live_m[:, None] & live_k[None, :], other=0.0)
            weight = tl.load(weight_ptrs, mask=live_k[:, None] & live_n[None, :], other=0.0)
        acc = tl.dot(x, weight, acc, input_precision="ieee")
        x_ptrs += step_k * stride_x_k
        weight_ptrs += step_k * stride_weight_k

    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs_n.to(tl.int64) * stride_bias, mask=live_n, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    out_ptrs = (
        out_ptr
        + split.to(tl.int64) * stride_out_split
        + offs_m.to(tl.int64)[:, None] * stride_out_row
        + offs_n.to(tl.int64)[None, :] * stride_out_column
    )  # [BLOCK_M, BLOCK_N]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=live_m[:, None] & live_n[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _reduce_kernel(
    partial_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    out_features: tl.tensor,
    stride_partial_split: tl.tensor,
    stride_partial_row: tl.tensor,
    stride_bias: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_column: tl.tensor,
    BLOCK_N: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """BLOCK_N columns of one row: the shares of K added in order, and bias, rounded once."""
    blocks_n = tl.cdiv(out_features, BLOCK_N)
    row = (tl.program_id(0) // blocks_n).to(tl.int64)
    offs_n = (tl.program_id(0) % blocks_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live_n = offs_n < out_features
    partial_ptrs = partial_ptr + row * stride_partial_row + offs_n  # [BLOCK_N]

    acc = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for _ in range(NUM_SPLITS):
        acc += tl.load(partial_ptrs, mask=live_n, other=0.0)
        partial_ptrs += stride_partial_split
    if HAS_BIAS:
        acc += tl.load(bias_ptr + offs_n * stride_bias, mask=live_n, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + row * stride_out_row + offs_n * stride_out_column
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=live_n)


def prefill_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tiling: MatmulTiling | None = None,
) -> torch.Tensor:
    """Product x @ weight.T + bias, accumulated in float32 and rounded once; the same bits every run.

    Not differentiable. Tensors keep their strides: nothing is copied, except an `x` of several
    leading dimensions that cannot be viewed as rows.

    Args:
        x: [..., in_features], bfloat16, float16 or float32 (multiplied as IEEE float32, not TF32).
        weight: [out_features, in_features], dtype of `x`.
        bias: [out_features], dtype of `x` or float32; none adds nothing.
        out: where to write the result: [..., out_features], dtype of `x`, not overlapping the
            inputs. A new tensor when none.
        tiling: how to cut the work; `choose_matmul_tiling` decides when none.

    Returns:
        [..., out_features], dtype of `x`.

    Raises:
        ValueError: an argument of the wrong shape, dtype or device; or CPU tensors while Triton
            compiles its kernels.
    """
    checks.check_prefill_matmul(x=x, weight=weight, bias=bias, out=out)
    out_features, in_features = weight.shape
    if out is None:
        out = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    x_rows = x.reshape(-1, in_features)
    out_rows = out.view(-1, out_features)
    rows = x_rows.shape[0]
    if tiling is None:
        tiling = choose_matmul_tiling(
            rows=rows,
            out_features=out_features,
            in_features=in_features,
            element_bytes=x.element_size(),
            aligned=_loads_16_bytes(x_rows) and _loads_16_bytes(weight),
            limits=gpu_limits(x.device),
        )
    splits = tiling.num_splits
    if splits == 1:
        target = out_rows[None]
    else:
        target = torch.empty((splits, rows, out_features), dtype=torch.float32, device=x.device)
    tiles = math.ceil(rows / tiling.block_m) * math.ceil(out_features / tiling.block_n)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _tile_kernel[(tiles * splits,)](
            x_ptr=x_rows,
            weight_ptr=weight,
            bias_ptr=bias,
            out_ptr=target,
            rows=rows,
            out_features=out_features,
            in_features=in_features,
            stride_x_row=x_rows.stride(0),
            stride_x_k=x_rows.stride(1),
            stride_weight_row=weight.stride(0),
            stride_weight_k=weight.stride(1),
            stride_bias=0 if bias is None else bias.stride(0),
            stride_out_split=target.stride(0),
            stride_out_row=target.stride(1),
            stride_out_column=target.stride(2),
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            GROUP_M=tiling.group_m,
            NUM_SPLITS=splits,
            EVEN_K=in_features % tiling.block_k == 0,
            HAS_BIAS=bias is not None and splits == 1,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            enable_fp_fusion=True,
        )
        if splits > 1:
            _reduce_kernel[(rows * math.ceil(out_features / _REDUCE_COLUMNS),)](
                partial_ptr=target,
                bias_ptr=bias,
                out_ptr=out_rows,
                out_features=out_features,
                stride_partial_split=target.stride(0),
                stride_partial_row=target.stride(1),
                stride_bias=0 if bias is None else bias.stride(0),
                stride_out_row=out_rows.stride(0),
                stride_out_column=out_rows.stride(1),
                BLOCK_N=_REDUCE_COLUMNS,
                NUM_SPLITS=splits,
                HAS_BIAS=bias is not None,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out


def _loads_16_bytes(operand: torch.Tensor) -> bool:
    """Whether Triton sees that rows (or columns) can be loaded 16 bytes at a time.

    It knows of a pointer, a stride or a size only whether 16 divides it.
    """
    for along, across in ((1, 0), (0, 1)):
        if operand.stride(along) == 1:
            sizes = (operand.data_ptr(), operand.stride(across), operand.shape[along])
            return all(size % 16 == 0 for size in sizes)
    return False
