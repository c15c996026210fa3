"""Modelled time of a mixture of experts (MoE): the routed experts of one layer on one GPU.

The call is what an engine runs after the router's GEMM: selection of experts, permutation of tokens, grouped
GEMM of gate and up, activation function, grouped GEMM of down, and the weighted sum of each token's experts.
`docs/accuracy.md` has the formula, its constants and their error.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import UsageError
from ..core.gpus import Gpu
from .expert_routing import ROW_TILES, expert_loads
from .kernel_time import KernelTime, Quantity, ceil_div, positive, rate_of, smooth_maximum
from .layer_constants import constants_of

KERNEL = "moe"
DTYPES = ("bf16", "fp8", "fp8_block", "fp4")
"""What `moe_time` multiplies in; "fp8_block" has a scale a block of 128 by 128, as DeepSeek-V3."""

NARROW_WEIGHTS = "w4a16"
"""Constants of bf16 products of weights that are narrower, and dequantised in the kernel."""

FITTED_AS = {"fp4": "fp8"}
"""Dtypes of which no MoE layer was measured, and the variant of the constants that they take."""

_TILE_COLUMNS = 128
_ACTIVATION_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class MoeConstants:
    """Constants of a MoE layer; shares are of the datasheet's figures.

    Attributes:
        memory_share: share of the bandwidth at which experts' weights are read.
        compute_share: share of the rate reached by the tile with the most rows.
        tile_exponent: a tile of 1/x of those rows reaches 1/x to this power of its rate.
        pass_share: share of the bandwidth of the passes over tokens: permutation, activation function,
            quantisation, weighted sum.
        fixed_s: time of an empty call: the launches of its five to ten kernels.
        expert_s: time per expert on the GPU, with tokens or without, of scheduling the groups.
        sm_dequantised_per_s: weights that an SM converts per second; every tile of rows converts those that
            it multiplies. None where weights are multiplied as they are stored.
    """

    memory_share: float
    compute_share: float
    tile_exponent: float
    pass_share: float
    fixed_s: float
    expert_s: float = 0.0
    sm_dequantised_per_s: float | None = None


def moe_time(
    gpu: Gpu,
    *,
    tokens: int,
    hidden_size: int,
    intermediate_size: int,
    experts: int,
    experts_per_token: int,
    gated: bool,
    dtype: str,
    weight_bytes_per_element: float,
    expert_parallel: int = 1,
    tensor_parallel: int = 1,
    routing: str = "balanced",
) -> KernelTime:
    """Models the routed experts of one layer on the busiest GPU; the router's GEMM is not in it.

    Args:
        gpu: the GPU.
        tokens: tokens that are routed together, of all GPUs that share the experts.
        hidden_size: elements of an expert's input.
        intermediate_size: elements between an expert's projections, of the entire expert.
        experts: routed experts of the layer.
        experts_per_token: experts that a token passes through.
        gated: whether a gate of the same size multiplies the intermediate elements.
        dtype: dtype of the products, one of `DTYPES`; a GPU without it multiplies in bf16.
        weight_bytes_per_element: bytes per element of the stored weights, with their scales.
        expert_parallel: GPUs that the experts are divided among.
        tensor_parallel: GPUs that each expert is divided among.
        routing: as `expert_loads` takes it.

    Raises:
        UsageError: a size is not positive and finite, or the dtype or routing is unknown.
    """
    sizes = positive(
        tokens=tokens,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        experts=experts,
        experts_per_token=experts_per_token,
        weight_bytes_per_element=weight_bytes_per_element,
        expert_parallel=expert_parallel,
        tensor_parallel=tensor_parallel,
    )
    loads = expert_loads(sizes["tokens"], int(experts), int(experts_per_token), int(expert_parallel), routing)
    variant, rate_dtype = variant_of(gpu, dtype, weight_bytes_per_element)
    return moe_terms(
        gpu,
        constants_of(MoeConstants, gpu, KERNEL, variant),
        tokens=sizes["tokens"],
        hidden_size=sizes["hidden_size"],
        inner_size=float(math.ceil(intermediate_size / tensor_parallel)),
        local_experts=sizes["experts"] / sizes["expert_parallel"],
        gates=2.0 if gated else 1.0,
        distinct=loads.distinct,
        rows=loads.rows,
        row_tiles=loads.row_tiles,
        dtype=rate_dtype,
        weight_bytes_per_element=weight_bytes_per_element,
    )


def variant_of(gpu: Gpu, dtype: str, weight_bytes_per_element: float) -> tuple[str, str]:
    """The variant of the constants, and the dtype of the rate, for a GPU's products of stored weights.

    Raises:
        UsageError: the dtype is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    rate_dtype = "fp8" if dtype == "fp8_block" else dtype
    if gpu.flop_per_s[rate_dtype] is None:
        rate_dtype = dtype = "bf16"
    if dtype == "bf16" and weight_bytes_per_element < _ACTIVATION_BYTES:
        return NARROW_WEIGHTS, rate_dtype
    return FITTED_AS.get(dtype, dtype), rate_dtype


def moe_terms(
    gpu: Gpu,
    constants: MoeConstants,
    *,
    tokens: Quantity,
    hidden_size: Quantity,
    inner_size: Quantity,
    local_experts: Quantity,
    gates: Quantity,
    distinct: Quantity,
    rows: Quantity,
    row_tiles: Mapping[int, Quantity],
    dtype: str,
    weight_bytes_per_element: float,
    least: Callable[[Sequence[Quantity]], Quantity] = min,
    round_up: Callable[[Quantity], Quantity] = math.ceil,
) -> KernelTime:
    """The formula, for floats or arrays: two grouped GEMMs, passes over tokens, fixed costs.

    `least` and `round_up` are the minimum of several and the ceiling, elementwise for arrays.
    """
    x_bytes = _ACTIVATION_BYTES if dtype == "bf16" else {"fp8": 1.0, "fp4": 0.5}[dtype]
    wide = gates * inner_size
    grouped = [
        _grouped_gemm(
            gpu,
            constants,
            distinct=distinct,
            rows=rows,
            row_tiles=row_tiles,
            out_features=out_features,
            in_features=in_features,
            rate=rate_of(gpu, dtype),
            weight_bytes_per_element=weight_bytes_per_element,
            x_bytes=x_bytes,
            least=least,
            round_up=round_up,
        )
        for out_features, in_features in ((wide, hidden_size), (hidden_size, inner_size))
    ]
    # Of a row: permutation and quantisation, activation function, weighted sum; of a token: input and sum.
    per_row = hidden_size * (_ACTIVATION_BYTES + x_bytes) + wide * _ACTIVATION_BYTES + inner_size * x_bytes
    passed = rows * (per_row + hidden_size * _ACTIVATION_BYTES) + 2 * _ACTIVATION_BYTES * tokens * hidden_size
    pass_s = passed / (gpu.bandwidth_bytes_per_s * constants.pass_share)
    fixed_s = constants.fixed_s + constants.expert_s * local_experts
    gemm_s = sum(smooth_maximum(memory_s, compute_s) for memory_s, compute_s in grouped)
    return KernelTime(
        time_s=gemm_s + pass_s + fixed_s,
        memory_s=sum(memory_s for memory_s, _ in grouped) + pass_s,
        compute_s=sum(compute_s for _, compute_s in grouped),
        fixed_s=fixed_s,
    )


def _grouped_gemm(
    gpu: Gpu,
    constants: MoeConstants,
    *,
    distinct: Quantity,
    rows: Quantity,
    row_tiles: Mapping[int, Quantity],
    out_features: Quantity,
    in_features: Quantity,
    rate: float,
    weight_bytes_per_element: float,
    x_bytes: float,
    least: Any,
    round_up: Any,
) -> tuple[Quantity, Quantity]:
    """Memory and compute time of one grouped GEMM: whole waves of tiles, the fastest of the tile sizes."""
    weights = out_features * in_features
    moved = distinct * weights * weight_bytes_per_element
    moved = moved + rows * (in_features * x_bytes + out_features * _ACTIVATION_BYTES)
    sm_rate = rate / gpu.sm_count * constants.compute_share
    columns = ceil_div(out_features, _TILE_COLUMNS)
    ways = []
    for tile_rows in ROW_TILES:
        tile_rate = sm_rate * (tile_rows / ROW_TILES[-1]) ** constants.tile_exponent
        tile_s = 2 * tile_rows * _TILE_COLUMNS * in_features / tile_rate
        way_s = round_up(row_tiles[tile_rows] * columns / gpu.sm_count) * tile_s
        if constants.sm_dequantised_per_s is not None:
            rate_of_gpu = constants.sm_dequantised_per_s * gpu.sm_count
            way_s = way_s + row_tiles[tile_rows] * weights / rate_of_gpu
        ways.append(way_s)
    return moved / (gpu.bandwidth_bytes_per_s * constants.memory_share), least(ways)
