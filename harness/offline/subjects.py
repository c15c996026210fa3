"""What is inspected: the kernels of this package. Of inspecting, this module alone names them."""

from typing import Any

from ... import kernels
from ...kernels.matmul_tiling import (
    DESCRIPTORS_FROM,
    PROGRAM_S,
    SECOND_KERNEL_S,
    SM_MEMORY_SHARE,
    MatmulTiling,
    Variant,
    choose_matmul_tiling,
    matmul_tilings,
)
from ...kernels.tiling import (
    EDGE_TOKENS,
    H100_LIMITS,
    MERGE_PROGRAMS,
    PART_TILES,
    DecodeTiling,
    GpuLimits,
    choose_decode_tiling,
)
from ..core.gpu_limits import SmLimits

__all__ = [
    "DESCRIPTORS_FROM",
    "EDGE_TOKENS",
    "H100_LIMITS",
    "MERGE_PROGRAMS",
    "PART_TILES",
    "PROGRAM_S",
    "SECOND_KERNEL_S",
    "SM_MEMORY_SHARE",
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


def kernel_limits(gpu: SmLimits) -> GpuLimits:
    """What the kernels' choosers need to know of a GPU of the table."""
    return GpuLimits(
        compute_capability=gpu.sm,
        sm_count=gpu.sm_count,
        shared_bytes_per_block=gpu.shared_bytes_per_block,
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
    return choose_matmul_tiling(
        **_product(limits, rows, out_features, in_features, x_bytes, weight_bytes), variant=variant
    )


def matmul_tiling_set(
    limits: GpuLimits, *, rows: int, out_features: int, in_features: int, x_bytes: int, weight_bytes: int
) -> tuple[MatmulTiling, ...]:
    """All tilings that it chooses from, with the same arguments."""
    return matmul_tilings(**_product(limits, rows, out_features, in_features, x_bytes, weight_bytes))


def _product(
    limits: GpuLimits, rows: int, out_features: int, in_features: int, x_bytes: int, weight_bytes: int
) -> dict[str, Any]:
    by_descriptors = all(in_features * size % 16 == 0 for size in (x_bytes, weight_bytes))
    return {
        "rows": rows,
        "out_features": out_features,
        "in_features": in_features,
        "element_bytes": x_bytes,
        "weight_element_bytes": weight_bytes,
        "aligned": in_features % 16 == 0,
        "descriptors": by_descriptors and limits.compute_capability >= DESCRIPTORS_FROM,
        "limits": limits,
    }
