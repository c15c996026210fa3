"""Modelled time of a GEMM: a roofline with tiles, waves, split-K and the quantisation of activations."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..core.gpus import Gpu
from .kernel_constants import GemmConstants, constants_for
from .kernel_time import (
    KernelTime,
    Quantity,
    ceil_div,
    l2_saving_s,
    multiplied_in,
    positive,
    rate_of,
    smooth_maximum,
)

_TILES = ((16, 128), (64, 64), (64, 128), (128, 128), (128, 256))  # rows, columns of an output tile
_LARGEST_TILE = 128 * 256
_SPLITS = (1, 2, 4)  # split-K factors, to occupy more SMs
_PARTIAL_BYTES = 4  # split-K partial sums are fp32
_X_BYTES = {"fp8": 1.0, "fp4": 0.5}  # bytes per element of quantised activations


def gemm_time(
    gpu: Gpu,
    *,
    rows: int,
    out_features: int,
    in_features: int,
    dtype: str,
    weight_bytes_per_element: float,
    activation_bytes_per_element: float = 2.0,
    quantised: bool = False,
    in_l2: bool = True,
) -> KernelTime:
    """Models x [rows, in_features] times weight [out_features, in_features] transposed.

    Args:
        gpu: the GPU.
        rows: M.
        out_features: N.
        in_features: K.
        dtype: dtype of the multiplication, "bf16", "fp8" or "fp4"; a GPU without fp8 or fp4 multiplies in
            bf16, one without bf16 in fp16.
        weight_bytes_per_element: bytes per element of the stored weight.
        activation_bytes_per_element: bytes per element of x before quantisation, and of the result.
        quantised: whether x arrives in `dtype`, because the kernel before it quantised it. If not, an fp8 or
            fp4 GEMM quantises x in a separate pass, as the measured calls do.
        in_l2: whether the call before read the same weight, as measured calls do: the L2 then keeps a small
            one. In a forward other layers come between, and it does not.
    """
    sizes = positive(
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        weight_bytes_per_element=weight_bytes_per_element,
        activation_bytes_per_element=activation_bytes_per_element,
    )
    gemm, dtype = constants_for(gpu).gemm, multiplied_in(gpu, dtype)
    constants = gemm[dtype]
    if quantised:
        constants = replace(constants, fixed_s=gemm["bf16"].fixed_s, quantise_share=None)
    return gemm_terms(gpu, constants, dtype=dtype, in_l2=in_l2, **sizes)


def gemm_terms(
    gpu: Gpu,
    constants: GemmConstants,
    *,
    rows: Quantity,
    out_features: Quantity,
    in_features: Quantity,
    dtype: str,
    weight_bytes_per_element: float,
    activation_bytes_per_element: float,
    in_l2: bool = True,
    least: Callable[[Sequence[Quantity]], Quantity] = min,
) -> KernelTime:
    """GEMM's formula; `least` is the minimum of several, elementwise for arrays."""
    bandwidth, pass_s = gpu.bandwidth_bytes_per_s, 0.0
    x_bytes = activation_bytes_per_element if dtype == "bf16" else _X_BYTES[dtype]
    if constants.quantise_share is not None:
        pass_bytes = rows * in_features * (activation_bytes_per_element + x_bytes)
        pass_s = pass_bytes / (bandwidth * constants.quantise_share)
    weights = weight_bytes_per_element * out_features * in_features
    moved = weights + x_bytes * rows * in_features + activation_bytes_per_element * rows * out_features
    memory_s = moved / (bandwidth * constants.memory_share)
    memory_s = memory_s - l2_saving_s(
        gpu,
        weights,
        constants.memory_share,
        l2_share=constants.l2_share,
        l2_sm_bytes_per_s=constants.l2_sm_bytes_per_s,
        in_l2=in_l2,
    )
    sm_rate = rate_of(gpu, dtype) / gpu.sm_count * constants.compute_share
    ways = []
    depth = in_features + constants.tile_depth
    for tile_rows, tile_columns in _TILES:
        area = tile_rows * tile_columns
        tile_s = 2 * area * depth / (sm_rate * (area / _LARGEST_TILE) ** constants.tile_exponent)
        tiles = ceil_div(rows, tile_rows) * ceil_div(out_features, tile_columns)
        for parts in _SPLITS:
            way_s = ceil_div(tiles * parts, gpu.sm_count) * tile_s / parts
            if parts > 1:
                exchanged = _PARTIAL_BYTES * parts * rows * out_features
                way_s = way_s + exchanged / (bandwidth * constants.split_bandwidth_share) + constants.split_s
            ways.append(way_s)
    compute_s = least(ways)
    fixed_s = constants.fixed_s
    time_s = smooth_maximum(memory_s, compute_s) + pass_s + fixed_s
    return KernelTime(time_s, memory_s + pass_s, compute_s, fixed_s, fixed_s)
