"""The grids of the kernels, as input of the schedule simulation (`schedule`).

Decode attention is simulated as bound by DRAM bandwidth; a matmul by tensor cores or by DRAM bandwidth,
whichever bounds its roofline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...kernels.decode_tiling import DecodeTiling
from ...kernels.matmul_tiling import MatmulTiling
from ..core.gpus import Gpu
from .cache_model import MatmulOperands
from .headroom import peak_flop_per_s
from .schedule import CtaWork, Grid, SharedResource, dram_bandwidth, fixed_time_s, simulate_grid, tensor_cores
from .tile_order import (
    PARTIAL_BYTES,
    PARTS_RECORD_BYTES,
    KvChunk,
    WorkTile,
    decode_chunk_order,
    matmul_tile_order,
)
from .variants import (
    ELEMENT_BYTES,
    CompileCase,
    case_decode_tiling,
    case_matmul_tiling,
    case_shape,
    multiplied_dtype,
)


@dataclass(frozen=True, kw_only=True)
class ScheduleEfficiency:
    """Ideal time of a grid's useful work over its simulated time.

    Attributes:
        uniform: decode attention with every context at the cache's capacity; a matmul's one figure.
        ragged: decode attention with contexts of capacity / 1, / 2, / 3 and so on; None for a matmul.
    """

    uniform: float
    ragged: float | None = None


def decode_grid(
    *,
    context_lens: Sequence[int],
    capacity: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    element_bytes: int,
    tiling: DecodeTiling,
    v_head_dim: int | None = None,
    query_tokens: int = 1,
    window: int | None = None,
) -> Grid:
    """The grid of `decode_attention` on sequences of these lengths, bound by DRAM bandwidth.

    A CTA moves the keys and values of its KV chunks and its split-KV partials. CTAs that compute other query
    rows of a head share its keys and values equally: the others hit L2. Queries and outputs are left out.

    Args:
        context_lens: live tokens of each sequence.
        capacity: tokens that a sequence's cache has room for.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a query and a key.
        element_bytes: bytes of an element of the cache, and of an output.
        tiling: tile sizes and splits.
        v_head_dim: elements of a value; None means `head_dim`.
        query_tokens: query tokens per sequence.
        window: sliding window in tokens; None for none.

    Returns:
        The grid; its useful work is the live keys and values, in bytes.
    """
    v_head_dim = v_head_dim or head_dim
    rows = q_heads // kv_heads * query_tokens
    token_bytes = (head_dim + v_head_dim) * element_bytes / math.ceil(rows / tiling.block_g)
    partial_row_bytes = (v_head_dim + 1) * PARTIAL_BYTES  # with its log-sum-exp
    ctas, cache_bytes, partial_bytes = [], 0.0, 0
    split_rows: dict[tuple[int, int, int], int] = {}  # by item
    for chunks in decode_chunk_order(
        context_lens=context_lens,
        capacity=capacity,
        q_heads=q_heads,
        kv_heads=kv_heads,
        tiling=tiling,
        query_tokens=query_tokens,
        window=window,
    ):
        cache = token_bytes * sum(chunk.end - chunk.begin for chunk in chunks)
        partial_rows = _partial_rows(chunks, rows, tiling.block_g)
        partial = sum(partial_rows.values()) * partial_row_bytes
        split_rows |= partial_rows
        fixed_s = fixed_time_s(len(chunks), reads_lengths=tiling.num_splits == 0)
        ctas.append(CtaWork(work=cache + partial, fixed_s=fixed_s))
        cache_bytes += cache
        partial_bytes += partial
    combine_bytes = None
    if tiling.num_splits != 1 and len(ctas) > 1:
        out_bytes = sum(split_rows.values()) * v_head_dim * element_bytes
        combine_bytes = partial_bytes + out_bytes + PARTS_RECORD_BYTES * len(ctas)
    return Grid(ctas=tuple(ctas), useful_work=cache_bytes, second_kernel_bytes=combine_bytes)


def _partial_rows(chunks: Sequence[KvChunk], rows: int, block_g: int) -> dict[tuple[int, int, int], int]:
    """Query rows of the partials that a CTA writes, by item."""
    return {
        (chunk.sequence, chunk.kv_head, chunk.row_block): min(block_g, rows - chunk.row_block * block_g)
        for chunk in chunks
        if not chunk.whole
    }


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
        useful_work=shape.least_bytes,
        second_kernel_bytes=_reduction_bytes(shape, tiling, order),
        persistent=tiling.variant != "pointers",
    )


def matmul_grid(
    shape: MatmulOperands, tiling: MatmulTiling, gpu: Gpu, dtype: str
) -> tuple[Grid, SharedResource]:
    """The grid of `prefill_matmul` and what bounds it: the roof with the longer ideal time."""
    peak = peak_flop_per_s(dtype, gpu)
    if peak is None or shape.operations / peak < shape.least_bytes / gpu.bandwidth_bytes_per_s:
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


def schedule_efficiency(case: CompileCase, gpu: Gpu, programs_per_sm: int) -> ScheduleEfficiency:
    """Simulates the grid of a compiled case with its default tiling, the second kernel included.

    Args:
        case: the call.
        gpu: the GPU.
        programs_per_sm: occupancy, in CTAs per SM.
    """
    if case.kernel == "prefill_matmul":
        tiling = case_matmul_tiling(case, gpu)
        grid, resource = matmul_grid(case_shape(case), tiling, gpu, multiplied_dtype(case, gpu.sm))
        schedule = simulate_grid(grid, gpu, programs_per_sm, resource=resource)
        return ScheduleEfficiency(uniform=schedule.efficiency)
    capacity, batch = case.shape["capacity"], case.shape["batch"]
    uniform, ragged = (
        simulate_grid(_case_decode_grid(case, lengths, gpu), gpu, programs_per_sm).efficiency
        for lengths in ([capacity] * batch, [capacity // (i + 1) for i in range(batch)])
    )
    return ScheduleEfficiency(uniform=uniform, ragged=ragged)


def _case_decode_grid(case: CompileCase, context_lens: Sequence[int], gpu: Gpu) -> Grid:
    shape = case.shape
    return decode_grid(
        context_lens=context_lens,
        capacity=shape["capacity"],
        q_heads=shape["q_heads"],
        kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        element_bytes=ELEMENT_BYTES[case.dtype],
        tiling=case_decode_tiling(case, gpu),
        query_tokens=shape.get("query_tokens", 1),
    )
