"""Modelled traffic and operations of a tiling: the formulas with which counted figures are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...kernels.decode_tiling import (
    COMBINE_PROGRAMS,
    EDGE_TOKENS,
    DecodeTiling,
    choose_decode_tiling,
    head_blocks,
)
from ...kernels.matmul_tile_tables import MatmulProblem
from ...kernels.matmul_tiling import MatmulTiling, choose_matmul_tiling
from ...kernels.prefill_attention_tiling import (
    PrefillAttentionTiling,
    choose_prefill_attention_tiling,
    head_dim_blocks,
)
from ..core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from ..core.work import ELEMENT_BYTES
from .tile_order import PARTIAL_BYTES, PARTIAL_COUNT_BYTES, decode_chunk_order, grouped_tile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...kernels.gpu_limits import GpuLimits
    from .tile_order import KvChunk

    CountedCase = PrefillMatmul | DecodeAttention | PrefillAttention
    Tiling = MatmulTiling | DecodeTiling | PrefillAttentionTiling

_LENGTH_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class TilingTraffic:
    """Bytes and operations of a tiling, by its formulas.

    Attributes:
        read: bytes of the unmasked lanes of all loads, by tensor.
        written: bytes of the unmasked lanes of all stores, by tensor.
        operations: of all dots, padding included.
    """

    read: Mapping[str, int]
    written: Mapping[str, int]
    operations: int


def chosen_tiling(case: CountedCase, limits: GpuLimits) -> Tiling:
    """The tiling that the kernel's host function chooses for a case on a GPU."""
    element_bytes = ELEMENT_BYTES[case.dtype]
    if isinstance(case, PrefillMatmul):
        problem = MatmulProblem.contiguous(
            rows=case.rows,
            out_features=case.out_features,
            in_features=case.in_features,
            x_bytes=element_bytes,
            weight_bytes=element_bytes,
        )
        return choose_matmul_tiling(problem, limits)
    if isinstance(case, PrefillAttention):
        return choose_prefill_attention_tiling(
            batch=case.sequences,
            tokens=case.prompt,
            q_heads=case.q_heads,
            kv_heads=case.kv_heads,
            head_dim=case.head_dim,
            v_head_dim=case.value_dim,
            element_bytes=element_bytes,
            limits=limits,
        )
    return choose_decode_tiling(
        batch=case.batch,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        v_head_dim=case.value_dim,
        latent=case.latent,
        capacity=case.capacity,
        page_size=0,
        element_bytes=element_bytes,
        limits=limits,
    )


def tiling_traffic(case: CountedCase, tiling: Tiling) -> TilingTraffic:
    """Modelled traffic and operations of a case under a tiling.

    Matmul: x is read once per column of output tiles, the weight once per row of output tiles; each tile and
    step along K is 2 BLOCK_M BLOCK_N BLOCK_K operations. Float32 partial sums of split-K tiles are written
    and read once.

    Decode attention: a query is read once per chunk of its context, live keys and values once per block of
    the GQA group; of a latent cache each live latent in place of both. Flash-decoding partials are written
    and read once. Each token is two dots of 2 BLOCK_G BLOCK_D and 2 BLOCK_G BLOCK_V operations per block of
    the GQA group, the head dimensions rounded up to powers of two (a key of over 256 elements and a latent:
    a power of two and a rest); a context's remainder after tiles of BLOCK_N is rounded up to 16 tokens.

    Prefill attention: a query and an output once; the keys and values of a row block's tiles once for each
    query head, from the first token in the window to the diagonal. The TMA loads whole tiles, as far as the
    tensor goes; pointers load the tokens that some row attends to.

    Raises:
        ValueError: the tiling is for the other operation.
    """
    if isinstance(case, PrefillAttention) and isinstance(tiling, PrefillAttentionTiling):
        return _prefill_attention_traffic(case, tiling)
    if isinstance(case, PrefillMatmul) and isinstance(tiling, MatmulTiling):
        return _matmul_traffic(case, tiling)
    if isinstance(case, DecodeAttention) and isinstance(tiling, DecodeTiling):
        return _decode_traffic(case, tiling)
    raise ValueError(
        f"tiling is a {type(tiling).__name__}, but the case is a {type(case).__name__}; it must be a "
        "MatmulTiling for a PrefillMatmul, a DecodeTiling for a DecodeAttention or a PrefillAttentionTiling "
        "for a PrefillAttention"
    )


def _prefill_attention_traffic(case: PrefillAttention, tiling: PrefillAttentionTiling) -> TilingTraffic:
    """In memory heads come before tokens: the rows of a TMA tile past a prompt are the next head's."""
    size, prompt = ELEMENT_BYTES[case.dtype], case.prompt
    block_d, block_r = head_dim_blocks(case.head_dim)
    block_v = max(16, 1 << (case.value_dim - 1).bit_length())
    whole_tiles = (
        tiling.variant != "pointers" and block_d + block_r == case.head_dim and block_v == case.value_dim
    )
    queries, keys = case.sequences * case.q_heads, case.sequences * case.kv_heads
    query_rows, key_rows, tiles = 0, 0, 0
    for row in range(0, prompt, tiling.block_m):
        last_row = min(row + tiling.block_m, prompt)
        begin = max(0, row - case.window + 1) if case.window else 0
        first, last = begin // tiling.block_n, math.ceil(last_row / tiling.block_n)
        tiles += last - first
        if whole_tiles:
            query_rows += _rows_in_memory(row, row + tiling.block_m, queries, prompt)
            key_rows += _rows_in_memory(first * tiling.block_n, last * tiling.block_n, keys, prompt)
        else:
            query_rows += queries * (last_row - row)
            key_rows += keys * (last_row - begin)
    group = case.q_heads // case.kv_heads
    read = {
        "q": query_rows * case.head_dim * size,
        "k": group * key_rows * case.head_dim * size,
        "v": group * key_rows * case.value_dim * size,
    }
    if case.sinks:
        read["sinks"] = queries * math.ceil(prompt / tiling.block_m) * size
    return TilingTraffic(
        read=read,
        written={"out": queries * prompt * case.value_dim * size},
        operations=2 * queries * tiles * tiling.block_m * tiling.block_n * (block_d + block_r + block_v),
    )


def _rows_in_memory(first: int, last: int, heads: int, prompt: int) -> int:
    """Rows [first, last) of all heads, one below the other; those past the last head do not exist."""
    return sum(min(head * prompt + last, heads * prompt) - head * prompt - first for head in range(heads))


def _matmul_traffic(case: PrefillMatmul, tiling: MatmulTiling) -> TilingTraffic:
    element_bytes = ELEMENT_BYTES[case.dtype]
    blocks_m = math.ceil(case.rows / tiling.block_m)
    blocks_n = math.ceil(case.out_features / tiling.block_columns)
    read = {
        "x": case.rows * case.in_features * element_bytes * blocks_n,
        "weight": case.out_features * case.in_features * element_bytes * blocks_m,
    }
    written = {"out": case.rows * case.out_features * element_bytes}
    split = _split_elements(case, tiling, blocks_m, blocks_n) if tiling.num_splits > 1 else 0
    if split:
        read["partial"] = written["partial"] = split * tiling.num_splits * PARTIAL_BYTES
    steps = blocks_m * blocks_n * math.ceil(case.in_features / tiling.block_k)
    operations = 2 * steps * tiling.block_m * tiling.block_n * tiling.block_k
    return TilingTraffic(read=read, written=written, operations=operations)


def _split_elements(case: PrefillMatmul, tiling: MatmulTiling, blocks_m: int, blocks_n: int) -> int:
    """Output elements in the tiles that are split along K; these tiles are few."""
    elements = 0
    for tile in range(min(tiling.whole_tiles, blocks_m * blocks_n), blocks_m * blocks_n):
        block_m, block_n = grouped_tile(tile, blocks_m, blocks_n, tiling.group_m)
        rows = min(tiling.block_m, case.rows - block_m * tiling.block_m)
        elements += rows * min(tiling.block_columns, case.out_features - block_n * tiling.block_columns)
    return elements


def _decode_traffic(case: DecodeAttention, tiling: DecodeTiling) -> TilingTraffic:
    element_bytes, lengths_bytes = ELEMENT_BYTES[case.dtype], case.batch * _LENGTH_BYTES
    group = case.q_heads // case.kv_heads
    programs = decode_chunk_order(
        context_lens=case.contexts,
        capacity=case.capacity,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        tiling=tiling,
    )

    def rows_of(chunk: KvChunk) -> int:
        """Query heads of a chunk's block of the GQA group."""
        return min(tiling.block_g, group - chunk.row_block * tiling.block_g)

    chunks = [chunk for program in programs for chunk in program]
    split_chunks = [chunk for chunk in chunks if not chunk.whole]
    split_rows = sum(map(rows_of, split_chunks))
    split_items = {(chunk.sequence, chunk.kv_head, chunk.row_block): chunk for chunk in split_chunks}
    combined_rows = sum(map(rows_of, split_items.values()))
    tokens_bytes = sum(chunk.end - chunk.begin for chunk in chunks) * element_bytes
    caches = {"k_cache": tokens_bytes * case.head_dim, "v_cache": tokens_bytes * case.value_dim}
    if case.latent:
        caches = {"latent_cache": tokens_bytes * case.head_dim}
    # With on-device scheduling a CTA sums all lengths, reads them again to find its chunk, and then two more.
    length_bytes = _LENGTH_BYTES if tiling.num_splits else 2 * lengths_bytes + 2 * _LENGTH_BYTES
    read = {
        "q": sum(map(rows_of, chunks)) * case.head_dim * element_bytes,
        **caches,
        "context_lens": len(programs) * length_bytes + (len(chunks) + combined_rows) * _LENGTH_BYTES,
    }
    written = {"out": case.batch * case.q_heads * case.value_dim * element_bytes}
    if len(programs) > 1 and tiling.num_splits != 1:
        block_rows = min(group, tiling.block_g)
        combine_programs = math.ceil(block_rows / math.ceil(block_rows / COMBINE_PROGRAMS))
        written["partial_counts"] = len(programs) * PARTIAL_COUNT_BYTES
        read["partial_counts"] = written["partial_counts"] * combine_programs
        read["partial"] = written["partial"] = split_rows * case.value_dim * PARTIAL_BYTES
        read["partial_lse"] = written["partial_lse"] = split_rows * PARTIAL_BYTES
    return TilingTraffic(read=read, written=written, operations=_decode_operations(case, tiling))


def _decode_operations(case: DecodeAttention, tiling: DecodeTiling) -> int:
    blocks = head_blocks(case.head_dim, case.value_dim, latent=case.latent)
    row_blocks = math.ceil(case.q_heads // case.kv_heads / tiling.block_g)
    tokens = sum(
        context - context % tiling.block_n + math.ceil(context % tiling.block_n / EDGE_TOKENS) * EDGE_TOKENS
        for context in case.contexts
    )
    width = blocks.d + blocks.r + blocks.v
    return 2 * tokens * case.kv_heads * row_blocks * tiling.block_g * width
