"""What is inspected: the kernels of this package. Of inspecting, this module alone names them."""

from ... import kernels
from ...kernels.tiling import (
    H100_LIMITS,
    DecodeTiling,
    GpuLimits,
    MatmulTiling,
    choose_decode_tiling,
    choose_matmul_tiling,
)

__all__ = [
    "H100_LIMITS",
    "DecodeTiling",
    "GpuLimits",
    "MatmulTiling",
    "choose_decode_tiling",
    "choose_matmul_tiling",
    "kernels",
]
