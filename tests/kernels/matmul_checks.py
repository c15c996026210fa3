"""What the tests of the matrix product hold a call against."""

import torch
from decodetax.kernels import MatmulTiling, prefill_matmul, prefill_matmul_workspace_bytes, reference
from kernel_inputs import NAN, normal, poisoned, worst_error

ORACLE_OPTIONS = {"bias", "activation", "x_scale", "weight_scale"}
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def tiling(
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


CUTS = {
    "whole": tiling(),
    "split": tiling(3),
    "last_tiles_split": tiling(3, whole_tiles=2),
    "columns": tiling(columns=20),
    "split_columns": tiling(2, columns=20, whole_tiles=1),
    "weight_first": tiling(weight_first=True),
    "split_weight_first": tiling(2, weight_first=True),
    "slices": tiling(block_n=128),
    "split_slices": tiling(2, block_n=128),
    "descriptors": tiling(variant="descriptors", programs=2),
    "split_descriptors": tiling(3, variant="descriptors", whole_tiles=2, programs=4),
    "weight_first_descriptors": tiling(variant="descriptors", weight_first=True, programs=100),
    "warp_specialized": tiling(variant="warp_specialized", block_n=128),
}
"""One of each kind: what a tile is, whether it is cut along K, how operands are loaded, how results leave."""


def padded(values):
    """The same values with NaN around them, rows and first element aligned to 16 bytes; int8 has 127."""
    width = values.shape[-1]
    shape = (*values.shape[:-2], values.shape[-2] + 2, -(-width // 16) * 16 + 16)
    surroundings = torch.full(shape, 127.0 if values.dtype == torch.int8 else NAN).to(values.dtype)
    inside = surroundings[..., 1:-1, :width]
    inside.copy_(values)
    return inside


def operands(rows, out_features, in_features, dtype=torch.bfloat16, weight_dtype=None, batch=()):
    """`x` and `weight`, as descriptors can load them; NaN around them."""
    x = normal(*batch, rows, in_features, dtype=torch.float32, seed=1)
    weight = normal(*batch, out_features, in_features, dtype=torch.float32, seed=2)
    return padded(x.to(dtype)), padded(_narrowed(weight, weight_dtype or dtype))


def positive_operands(*shape, **options):
    """Sums without cancellation: the error of a row of one column has no other to be measured against."""
    x, weight = operands(*shape, **options)
    return padded(_absolute(x)), padded(_absolute(weight))


def _narrowed(values, dtype):
    """Int8 as whole numbers of a standard deviation of 40."""
    return (values * 40).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else values.to(dtype)


def _absolute(values):
    magnitudes = values.float().abs()
    return (magnitudes.clamp(max=127) if values.dtype == torch.int8 else magnitudes).to(values.dtype)


def result_dtype(x, out_dtype=None):
    return out_dtype or (torch.bfloat16 if x.element_size() == 1 else x.dtype)


def multiply(x, weight, *, out_dtype=None, tiling=None, precision="ieee", **options):
    """The result, written over NaN, with a workspace of NaN as small as may be."""
    options |= {"out_dtype": out_dtype, "tiling": tiling, "precision": precision}
    columns = weight.shape[-2] // (2 if options.get("activation") == "swiglu" else 1)
    out = poisoned(*x.shape[:-1], columns, dtype=result_dtype(x, out_dtype))
    size = prefill_matmul_workspace_bytes(x, weight, **options)
    workspace = poisoned(size // 4, dtype=torch.float32)
    assert prefill_matmul(x, weight, **options, out=out, workspace=workspace) is out
    return out


def assert_right(x, weight, **options):
    assert error(multiply(x, weight, **options), x, weight, **options) <= 1


def error(output, x, weight, **options):
    """The worst row's error, in units of what is allowed.

    The two sums that "swiglu" multiplies are relative errors that add: those of four times the products,
    for `tolerance` takes their square root. The epilogue computes in float32, so that where the result is
    float32 too, each of its steps (two scales, bias, activation) is one more rounding to it.
    """
    options = {name: value for name, value in options.items() if name in ORACLE_OPTIONS}
    given = [name for name, value in options.items() if value is not None]
    return worst_error(
        output,
        reference.prefill_matmul(x, weight, **options),
        reduction=x.shape[-1] * (4 if options.get("activation") == "swiglu" else 1),
        roundings=1 + (len(given) if output.dtype == torch.float32 else 0),
    )
