"""What is inspected: the kernels of this package. Of inspecting, this module alone names them."""

from ... import kernels
from ...kernels.tiling import (
    EDGE_TOKENS,
    H100_LIMITS,
    MERGE_PROGRAMS,
    PART_TILES,
    DecodeTiling,
    GpuLimits,
    MatmulTiling,
    choose_decode_tiling,
    choose_matmul_tiling,
)
from ..accounting.gpu_limits import SmLimits

__all__ = [
    "EDGE_TOKENS",
    "H100_LIMITS",
    "MERGE_PROGRAMS",
    "PART_TILES",
    "DecodeTiling",
    "GpuLimits",
    "MatmulTiling",
    "choose_decode_tiling",
    "choose_matmul_tiling",
    "kernel_limits",
    "kernels",
]


def kernel_limits(gpu: SmLimits) -> GpuLimits:
    """What the kernels' choosers need to know of a GPU of the table."""
    return GpuLimits(
        compute_capability=gpu.sm,
        sm_count=gpu.sm_count,
        shared_bytes_per_block=gpu.shared_bytes_per_block,
        shared_bytes_per_sm=gpu.shared_bytes_per_sm,
    )
