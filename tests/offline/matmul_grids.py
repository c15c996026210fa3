"""The grid of `prefill_matmul`, as input of the schedule simulation.

It is bound by tensor cores or by DRAM bandwidth, whichever bounds its roofline.
"""

import math
from collections.abc import Sequence

from decodetax.harness.core.gpus import Gpu
from decodetax.harness.offline.cache_model import MatmulOperands
from decodetax.harness.offline.headroom import peak_flop_per_s
from decodetax.harness.offline.schedule import CtaWork, Grid, SharedResource, dram_bandwidth
from decodetax.harness.offline.tile_order import PARTIAL_BYTES, WorkTile, matmul_tile_order
from decodetax.kernels.matmul_tiling import MatmulTiling


def tensor_cores(flop_per_s: float) -> SharedResource:
    """Tensor cores at a peak of `flop_per_s`; each SM has its own."""
    return SharedResource(unit="operations", rate_per_s=flop_per_s, sm_share=1.0)


def min_bytes(shape: MatmulOperands) -> int:
    """Inputs and result, once each."""
    x, weight = shape.rows * shape.x_bytes, shape.out_features * shape.weight_bytes
    return shape.in_features * (x + weight) + shape.rows * shape.out_features * shape.out_bytes


def matmul_compute_grid(shape: MatmulOperands, tiling: MatmulTiling) -> Grid:
    """The grid of `prefill_matmul` bound by tensor cores; useful are 2 M N K operations.

    A CTA computes its whole tile, rows and columns outside the matrices included. A work tile of a persistent
    kernel counts as a CTA: it pays the fixed time again.
    """
    step = 2 * tiling.block_m * tiling.block_n * tiling.block_k
    order = matmul_tile_order(shape, tiling)
    return Grid(
        ctas=tuple(CtaWork(work=step * (tile.last_k - tile.first_k)) for tile in order),
        useful_work=shape.operations,
        second_kernel_bytes=_reduction_bytes(shape, tiling, order),
        persistent=tiling.variant != "pointers",
    )


def matmul_memory_grid(shape: MatmulOperands, tiling: MatmulTiling) -> Grid:
    """The grid of `prefill_matmul` bound by DRAM bandwidth; useful are inputs and result, once each.

    CTAs that read the same panel share its bytes equally, as if L2 kept it for them (see `cache_model`).
    """
    blocks_m = math.ceil(shape.rows / tiling.block_m)
    blocks_n = math.ceil(shape.out_features / tiling.block_columns)
    order = matmul_tile_order(shape, tiling)
    ctas = []
    for tile in order:
        rows, columns = _live_size(shape, tiling, tile)
        depth = min(tile.last_k * tiling.block_k, shape.in_features) - tile.first_k * tiling.block_k
        inputs = rows * shape.x_bytes / blocks_n + columns * shape.weight_bytes / blocks_m
        out_bytes = shape.out_bytes if tile.whole else PARTIAL_BYTES
        ctas.append(CtaWork(work=max(depth, 0) * inputs + rows * columns * out_bytes))
    return Grid(
        ctas=tuple(ctas),
        useful_work=min_bytes(shape),
        second_kernel_bytes=_reduction_bytes(shape, tiling, order),
        persistent=tiling.variant != "pointers",
    )


def matmul_grid(
    shape: MatmulOperands, tiling: MatmulTiling, gpu: Gpu, dtype: str
) -> tuple[Grid, SharedResource]:
    """The grid of `prefill_matmul` and what bounds it: the resource with the longer ideal time."""
    peak = peak_flop_per_s(dtype, gpu)
    if peak is None or shape.operations / peak < min_bytes(shape) / gpu.bandwidth_bytes_per_s:
        return matmul_memory_grid(shape, tiling), dram_bandwidth(gpu)
    return matmul_compute_grid(shape, tiling), tensor_cores(peak)


def _reduction_bytes(shape: MatmulOperands, tiling: MatmulTiling, order: Sequence[WorkTile]) -> int | None:
    """Split-K partial sums read and their results written; None without split tiles."""
    sizes = [(math.prod(_live_size(shape, tiling, tile)), tile.split) for tile in order if not tile.whole]
    if not sizes:
        return None
    return sum(size * (PARTIAL_BYTES + (shape.out_bytes if split == 0 else 0)) for size, split in sizes)


def _live_size(shape: MatmulOperands, tiling: MatmulTiling, tile: WorkTile) -> tuple[int, int]:
    """Rows and columns of a tile that are inside the matrices."""
    return (
        min(tiling.block_m, shape.rows - tile.block_m * tiling.block_m),
        min(tiling.block_columns, shape.out_features - tile.block_n * tiling.block_columns),
    )
