"""The grid of a decode attention as programs to simulate (see `schedule`), limited by DRAM bandwidth."""

import math
from collections.abc import Sequence

from .schedule import Launch, ProgramWork, fixed_time_s
from .tile_order import PART_RECORD_BYTES, PARTIAL_BYTES, DecodeCut, decode_part_order


def decode_launch(
    *,
    context_lens: Sequence[int],
    capacity: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    element_bytes: int,
    tiling: DecodeCut,
    v_head_dim: int | None = None,
    query_tokens: int = 1,
    window: int | None = None,
) -> Launch:
    """The launch of `decode_attention` on sequences of these lengths; limited by DRAM bandwidth.

    A program moves the keys and values of its parts, its share of them where several programs take the query
    rows of one head (the others find them in L2), and the partial results that it writes. Queries and the
    outputs of whole items are left out: group x head_dim elements against thousands of times as many.

    Args:
        context_lens: live tokens of each sequence.
        capacity: tokens that a sequence's cache has room for.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a query and a key.
        element_bytes: of an element of the cache, and of an output.
        tiling: how the kernel cuts the work.
        v_head_dim: elements of a value; `head_dim` when none.
        query_tokens: of a sequence.
        window: tokens that a query token sees; all when none.

    Returns:
        The launch; its useful work is the live keys and values.
    """
    v_head_dim = v_head_dim or head_dim
    balanced = tiling.num_splits == 0
    rows = q_heads // kv_heads * query_tokens
    row_blocks = math.ceil(rows / tiling.block_g)
    token_bytes = (head_dim + v_head_dim) * element_bytes / row_blocks
    partial_row_bytes = (v_head_dim + 1) * PARTIAL_BYTES  # with its log-sum-exp
    programs, cache_bytes, partial_bytes = [], 0.0, 0
    cut_rows: dict[tuple[int, int, int], int] = {}  # by item
    for parts in decode_part_order(
        context_lens=context_lens,
        capacity=capacity,
        q_heads=q_heads,
        kv_heads=kv_heads,
        tiling=tiling,
        query_tokens=query_tokens,
        window=window,
    ):
        cache = token_bytes * sum(part.end - part.begin for part in parts)
        partial = 0
        for part in parts:
            if not part.whole:
                part_rows = min(tiling.block_g, rows - part.row_block * tiling.block_g)
                partial += part_rows * partial_row_bytes
                cut_rows[part.sequence, part.kv_head, part.row_block] = part_rows
        fixed_s = fixed_time_s(len(parts), reads_lengths=balanced)
        programs.append(ProgramWork(work=cache + partial, fixed_s=fixed_s))
        cache_bytes += cache
        partial_bytes += partial
    second_kernel_bytes = None
    if tiling.num_splits != 1 and len(programs) > 1:
        out_bytes = sum(cut_rows.values()) * v_head_dim * element_bytes
        second_kernel_bytes = partial_bytes + out_bytes + PART_RECORD_BYTES * len(programs)
    return Launch(programs=tuple(programs), useful_work=cache_bytes, second_kernel_bytes=second_kernel_bytes)
