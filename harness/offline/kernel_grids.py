"""The grid of decode attention, as input of the schedule simulation (`schedule`): bound by DRAM bandwidth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...kernels.decode_tiling import DecodeTiling
from ..core.gpus import Gpu
from .schedule import CtaWork, Grid, fixed_time_s, simulate_grid
from .tile_order import (
    PARTIAL_BYTES,
    PARTIAL_COUNT_BYTES,
    KvChunk,
    decode_chunk_order,
)
from .variants import (
    ELEMENT_BYTES,
    CompileCase,
    case_decode_tiling,
)


@dataclass(frozen=True, kw_only=True)
class ScheduleEfficiency:
    """Ideal time of a decode attention's useful work over the simulated time of its grid.

    Attributes:
        uniform: with every context at the cache's capacity.
        ragged: with contexts of capacity / 1, / 2, / 3 and so on.
    """

    uniform: float
    ragged: float


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
    q_lens: Sequence[int] | None = None,
    window: int | None = None,
    latent: bool = False,
) -> Grid:
    """The grid of `decode_attention` on sequences of these lengths, bound by DRAM bandwidth.

    A CTA moves the keys and values of its KV chunks and its split-KV partials. CTAs that compute other query
    rows of a head share its keys and values equally: the others hit L2. Queries and outputs are left out, and
    so is the time that tensor cores take with many rows.

    Args:
        context_lens: live tokens of each sequence.
        capacity: tokens that the cache of one sequence can hold.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a query and a key.
        element_bytes: bytes of an element of the cache, and of an output.
        tiling: tile sizes and splits.
        v_head_dim: elements of a value; None means `head_dim`.
        query_tokens: query tokens per sequence.
        q_lens: query tokens of each sequence, if they are ragged and packed.
        window: sliding window in tokens; None for none.
        latent: whether the values are the first elements of the keys.

    Returns:
        The grid; its useful work is the live keys and values, in bytes.
    """
    v_head_dim = v_head_dim or head_dim
    group = q_heads // kv_heads
    rows = [group * tokens for tokens in q_lens or [query_tokens] * len(context_lens)]
    cached = head_dim if latent else head_dim + v_head_dim
    token_bytes = [cached * element_bytes / max(1, math.ceil(each / tiling.block_g)) for each in rows]
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
        q_lens=q_lens,
        window=window,
    ):
        cache = math.fsum(token_bytes[chunk.sequence] * (chunk.end - chunk.begin) for chunk in chunks)
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
        combine_bytes = partial_bytes + out_bytes + PARTIAL_COUNT_BYTES * len(ctas)
    return Grid(ctas=tuple(ctas), useful_work=cache_bytes, second_kernel_bytes=combine_bytes)


def _partial_rows(
    chunks: Sequence[KvChunk], rows: Sequence[int], block_g: int
) -> dict[tuple[int, int, int], int]:
    """Query rows of the partials that a CTA writes, by item; from the rows of each sequence."""
    return {
        (chunk.sequence, chunk.kv_head, chunk.row_block): min(
            block_g, rows[chunk.sequence] - chunk.row_block * block_g
        )
        for chunk in chunks
        if not chunk.whole
    }


def schedule_efficiency(case: CompileCase, gpu: Gpu, programs_per_sm: int) -> ScheduleEfficiency:
    """Simulates the grid of a compiled decode attention with its default tiling, combine kernel included.

    Args:
        case: the call.
        gpu: the GPU.
        programs_per_sm: occupancy, in CTAs per SM.
    """
    capacity, batch = case.shape["capacity"], case.shape["batch"]
    uniform, ragged = (
        simulate_grid(_case_decode_grid(case, lengths, gpu), gpu, programs_per_sm).efficiency
        for lengths in ([capacity] * batch, [capacity // (i + 1) for i in range(batch)])
    )
    return ScheduleEfficiency(uniform=uniform, ragged=ragged)


def _case_decode_grid(case: CompileCase, context_lens: Sequence[int], gpu: Gpu) -> Grid:
    shape, packed_tokens = case.shape, case.shape.get("packed_tokens")
    others = shape["batch"] - 1
    return decode_grid(
        context_lens=context_lens,
        capacity=shape["capacity"],
        q_heads=shape["q_heads"],
        kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        element_bytes=ELEMENT_BYTES[case.dtype],
        tiling=case_decode_tiling(case, gpu),
        query_tokens=shape.get("query_tokens", 1),
        v_head_dim=shape.get("v_head_dim"),
        latent=bool(shape.get("latent")),
        q_lens=[packed_tokens - others, *[1] * others] if packed_tokens else None,
    )
