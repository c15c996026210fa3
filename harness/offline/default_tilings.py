"""The tilings that the kernels choose for a GPU that need not be present."""

from ...kernels.gpu_limits import GpuLimits
from ...kernels.matmul_tile_tables import MatmulProblem
from ...kernels.matmul_tiling import MatmulTiling, Variant, choose_matmul_tiling
from ..core.gpus import Gpu
from .cache_model import MatmulOperands


def kernel_limits(gpu: Gpu) -> GpuLimits:
    """The limits that the kernels' choosers read, of a GPU of the table."""
    return GpuLimits(
        compute_capability=gpu.sm,
        sm_count=gpu.sm_count,
        shared_bytes_per_block=gpu.limits.shared_bytes_per_block,
        shared_bytes_per_sm=gpu.shared_bytes_per_sm,
    )


def matmul_problem(shape: MatmulOperands) -> MatmulProblem:
    """The kernels' problem of contiguous operands whose storage is aligned to 16 bytes."""
    return MatmulProblem.contiguous(
        rows=shape.rows,
        out_features=shape.out_features,
        in_features=shape.in_features,
        x_bytes=shape.x_bytes,
        weight_bytes=shape.weight_bytes,
    )


def matmul_tiling(shape: MatmulOperands, gpu: Gpu, variant: Variant | None = None) -> MatmulTiling:
    """The tiling that `prefill_matmul` chooses; `variant` names the only variant to choose."""
    return choose_matmul_tiling(matmul_problem(shape), kernel_limits(gpu), variant)
