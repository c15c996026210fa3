"""Helpers of the prefill matmul tests: tilings, operands, comparison with the oracle."""

import torch
from decodetax.kernels import MatmulTiling, prefill_matmul, prefill_matmul_workspace_bytes, reference
from kernel_inputs import NAN, normal, poisoned, worst_error

ORACLE_OPTIONS = {
    *("bias", "activation", "x_scale", "weight_scale", "gate_up", "residual", "residual_scale"),
    *("swiglu_alpha", "swiglu_beta", "swiglu_limit"),
}
GATED = {"swiglu", "geglu", "geglu_tanh", "reglu", "bilinear"}
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def matmul_tiling(
    num_splits=1, *, block_m=16, block_n=32, block_k=16, group_m=3, num_warps=4, num_stages=2, **fields
):
    return MatmulTiling(
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        group_m=group_m,
        num_splits=num_splits,
        num_warps=num_warps,
        num_stages=num_stages,
        **fields,
    )


TILINGS = {
    "whole": matmul_tiling(),
    "split": matmul_tiling(3),
    "last_tiles_split": matmul_tiling(3, whole_tiles=2),
    "columns": matmul_tiling(columns=20),
    "split_columns": matmul_tiling(2, columns=20, whole_tiles=1),
    "weight_first": matmul_tiling(weight_first=True),
    "split_weight_first": matmul_tiling(2, weight_first=True),
    "slices": matmul_tiling(block_n=128),
    "split_slices": matmul_tiling(2, block_n=128),
    "descriptors": matmul_tiling(variant="descriptors", programs=2),
    "split_descriptors": matmul_tiling(3, variant="descriptors", whole_tiles=2, programs=4),
    "weight_first_descriptors": matmul_tiling(variant="descriptors", weight_first=True, programs=100),
    "warp_specialized": matmul_tiling(variant="warp_specialized", block_n=128),
}
"""One of each kind: tile shape, split-K or not, pointer or TMA loads, epilogue slices."""


def padded(values):
    """The values surrounded by NaN (127 for int8), with address and row stride aligned to 16 bytes."""
    width = values.shape[-1]
    shape = (*values.shape[:-2], values.shape[-2] + 2, -(-width // 16) * 16 + 16)
    surroundings = torch.full(shape, 127.0 if values.dtype == torch.int8 else NAN).to(values.dtype)
    inside = surroundings[..., 1:-1, :width]
    inside.copy_(values)
    return inside


def operands(rows, out_features, in_features, dtype=torch.bfloat16, weight_dtype=None, batch=()):
    """`x` and `weight` in layouts that the TMA can load, surrounded by NaN."""
    x = normal(*batch, rows, in_features, dtype=torch.float32, seed=1)
    weight = normal(*batch, out_features, in_features, dtype=torch.float32, seed=2)
    return padded(x.to(dtype)), padded(_narrowed(weight, weight_dtype or dtype))


def positive_operands(*shape, **options):
    """Sums without cancellation: the error of a row with one column cannot be compared with other columns."""
    x, weight = operands(*shape, **options)
    return padded(_absolute(x)), padded(_absolute(weight))


def _narrowed(values, dtype):
    """Int8 values get a standard deviation of 40."""
    return (values * 40).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else values.to(dtype)


def _absolute(values):
    magnitudes = values.float().abs()
    return (magnitudes.clamp(max=127) if values.dtype == torch.int8 else magnitudes).to(values.dtype)


def result_dtype(x, out_dtype=None):
    return out_dtype or (torch.bfloat16 if x.element_size() == 1 else x.dtype)


def multiply(x, weight, *, out_dtype=None, tiling=None, precision="ieee", **options):
    """The result, written over NaN, with the smallest workspace, full of NaN."""
    options |= {"out_dtype": out_dtype, "tiling": tiling, "precision": precision}
    one_gated = options.get("activation") in GATED and not isinstance(weight, tuple)
    columns = (weight[0] if isinstance(weight, tuple) else weight).shape[-2] // (2 if one_gated else 1)
    out = poisoned(*x.shape[:-1], columns, dtype=result_dtype(x, out_dtype))
    size = prefill_matmul_workspace_bytes(x, weight, **options)
    workspace = poisoned(size // 4, dtype=torch.float32)
    assert prefill_matmul(x, weight, **options, out=out, workspace=workspace) is out
    return out


def assert_right(x, weight, **options):
    assert error(multiply(x, weight, **options), x, weight, **options) <= 1


def error(output, x, weight, **options):
    """Worst row error in units of the tolerance.

    A gated activation multiplies two sums, whose errors add; `tolerance` takes the square root of the
    products, so it gets four times as many. The epilogue computes in float32: for a float32 result each of
    its steps (two scales, bias, activation) is one more rounding.
    """
    options = {name: value for name, value in options.items() if name in ORACLE_OPTIONS}
    given = [name for name, value in options.items() if value is not None]
    return worst_error(
        output,
        reference.prefill_matmul(x, weight, **options),
        reduction=x.shape[-1] * (4 if options.get("activation") in GATED else 1),
        roundings=1 + (len(given) if output.dtype == torch.float32 else 0),
    )
