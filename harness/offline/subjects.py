"""What is inspected: the kernels of this package. Of inspecting, this module alone names them."""

from ... import kernels
from ...kernels.decode_tiling import (
    COMBINE_PROGRAMS,
    EDGE_TOKENS,
    ITEM_COST_TILES,
    DecodeTiling,
    choose_decode_tiling,
)
from ...kernels.gpu_limits import H100_LIMITS, GpuLimits
from ...kernels.matmul_tile_tables import MatmulProblem
from ...kernels.matmul_tiling import (
    PROGRAM_OVERHEAD_S,
    SECOND_KERNEL_S,
    SM_MEMORY_SHARE,
    TMA_FROM_CAPABILITY,
    MatmulTiling,
    Variant,
    choose_matmul_tiling,
    matmul_tilings,
)
from ..core.gpus import Gpu

__all__ = [
    "COMBINE_PROGRAMS",
    "EDGE_TOKENS",
    "H100_LIMITS",
    "ITEM_COST_TILES",
    "PROGRAM_OVERHEAD_S",
    "SECOND_KERNEL_S",
    "SM_MEMORY_SHARE",
    "TMA_FROM_CAPABILITY",
    "DecodeTiling",
    "GpuLimits",
    "MatmulTiling",
    "Variant",
    "choose_decode_tiling",
    "kernel_limits",
    "kernels",
    "matmul_tiling",
    "matmul_tiling_set",
]


def kernel_limits(gpu: Gpu) -> GpuLimits:
    """What the kernels' choosers need to know of a GPU of the table."""
    return GpuLimits(
        compute_capability=gpu.sm,
        sm_count=gpu.sm_count,
        shared_bytes_per_block=gpu.limits.shared_bytes_per_block,
        shared_bytes_per_sm=gpu.shared_bytes_per_sm,
    )


def matmul_tiling(
    limits: GpuLimits,
    *,
    rows: int,
    out_features: int,
    in_features: int,
    x_bytes: int,
    weight_bytes: int,
    variant: Variant | None = None,
) -> MatmulTiling:
    """The tiling that `prefill_matmul` chooses on a GPU for contiguous operands that start aligned.

    Args:
        limits: of the GPU.
        rows: M.
        out_features: N, rows of the weight.
        in_features: K.
        x_bytes: of an element of x.
        weight_bytes: of an element of the weight.
        variant: the only one to choose; any when none.
    """
    problem = MatmulProblem.contiguous(
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        x_bytes=x_bytes,
        weight_bytes=weight_bytes,
    )
    return choose_matmul_tiling(problem, limits, variant)


def matmul_tiling_set(
    limits: GpuLimits, *, rows: int, out_features: int, in_features: int, x_bytes: int, weight_bytes: int
) -> tuple[MatmulTiling, ...]:
    """All tilings that it chooses from, with the same arguments."""
    problem = MatmulProblem.contiguous(
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        x_bytes=x_bytes,
        weight_bytes=weight_bytes,
    )
    return matmul_tilings(problem, limits)
