"""Tile sizes and CTA count of `decode_attention`, and the function that chooses them from shapes and GPU."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .gpu_limits import (
    GpuLimits,
    next_power_of_two,
    registers_for,
    require_max_registers,
    require_positive,
    require_powers_of_two,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEM_COST_TILES = 1
"""Cost of starting a work item (loading q, filling the pipeline), in KV tiles, for balancing the CTAs."""

EDGE_TOKENS = 16
"""Tokens of a masked tile at either end of a context: the smallest dimension of `tl.dot`."""

COMBINE_PROGRAMS = 16
"""At most this many CTAs combine the split-KV partials of one work item."""

MAX_SPLITS = 1 << 16
"""Most KV splits of one sequence."""

MAX_COMPILED_QUERY_TOKENS = 8
"""More query tokens per sequence take the kernel of ragged queries, compiled once for all numbers of them."""

_MIN_CHUNK_TILES = 5  # a smaller chunk costs more to combine than it saves
_MAX_ACCUMULATOR_ELEMENTS = 16384  # a larger accumulator spills
_LEAST_BLOCK = 16  # the smallest dimension of `tl.dot`
_LARGEST_PADDED = 256  # a longer key is divided into a main part and a rest


@dataclass(frozen=True, kw_only=True)
class DecodeTiling:
    """Tile sizes and CTA count of one decode attention.

    Attributes:
        block_g: rows of the q tile: query tokens times the heads of a GQA group.
        block_n: KV tokens per tile.
        num_splits: split-KV: chunks that each sequence is split into by its own length; 0 gives `programs`
            CTAs equal-sized chunks of all KV tiles of the batch.
        programs: CTAs of the split-KV kernel, where `num_splits` is 0.
        min_tiles: fewest KV tiles of a CTA's chunk.
        num_warps: warps per CTA.
        num_stages: stages of the software pipeline.
        max_registers: registers per thread at most; None leaves it to the compiler.
    """

    block_g: int
    block_n: int
    num_splits: int = 0
    programs: int = 1
    min_tiles: int = 1
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __post_init__(self) -> None:
        require_powers_of_two(self, "block_g", "block_n", "num_warps")
        require_positive(self, "programs", "min_tiles", "num_stages")
        require_max_registers(self.max_registers)
        if self.block_n < EDGE_TOKENS:
            raise ValueError(f"block_n is {self.block_n}; it must be at least {EDGE_TOKENS}")
        if type(self.num_splits) is not int or not 0 <= self.num_splits <= MAX_SPLITS:
            raise ValueError(f"num_splits is {self.num_splits!r}; it must be an int from 0 to {MAX_SPLITS}")

    def in_one_wave(self, sm_count: int) -> Self:
        """This tiling with a register limit at which all CTAs are resident at once on `sm_count` SMs.

        Raises:
            ValueError: an SM has too few registers for that.
        """
        registers = registers_for(self.num_warps, math.ceil(self.programs / sm_count))
        return dataclasses.replace(self, max_registers=registers)


@dataclass(frozen=True, kw_only=True)
class HeadBlocks:
    """Blocks, powers of two, that keys and values are divided into.

    Attributes:
        d: elements of the main part of a key.
        r: elements of the rest of a key; 0 if there is none.
        v: elements of a value. In a latent cache `d`: values are the main part of the keys.
    """

    d: int
    r: int
    v: int


@functools.cache
def head_blocks(head_dim: int, v_head_dim: int, *, latent: bool) -> HeadBlocks:
    """The blocks of a head. A key of 576 is 512 and 64: one block of 1024 would be half padding.

    Args:
        head_dim: elements of a key.
        v_head_dim: elements of a value.
        latent: whether the values are the first elements of the keys.
    """
    v = max(_LEAST_BLOCK, next_power_of_two(v_head_dim))
    d = max(_LEAST_BLOCK, next_power_of_two(head_dim))
    if latent or head_dim > _LARGEST_PADDED:
        d = max(_LEAST_BLOCK, _power_of_two_within(head_dim))
    if latent:
        # Of a small head the values' block alone, else all of the keys that a power of two holds.
        d = v = v if head_dim <= 2 * v else max(v, d)
    rest = head_dim - d
    return HeadBlocks(d=d, r=max(_LEAST_BLOCK, next_power_of_two(rest)) if rest > 0 else 0, v=v)


@functools.cache
def choose_decode_tiling(
    *,
    batch: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    capacity: int,
    page_size: int,
    element_bytes: int,
    limits: GpuLimits,
    query_tokens: int = 1,
    v_head_dim: int | None = None,
    query_element_bytes: int | None = None,
    latent: bool = False,
    ragged: bool = False,
    packed_tokens: int | None = None,
) -> DecodeTiling:
    """The tiling of one decode attention, from shapes and capacity: the lengths stay on the device.

    One wave of CTAs takes equal-sized chunks of all live KV tiles. Only `programs` depends on batch and
    capacity.

    Args:
        batch: sequences.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a query and a key.
        capacity: tokens that the cache of one sequence can hold.
        page_size: tokens of a page; 0 for a contiguous cache.
        element_bytes: bytes of a cache element.
        limits: the GPU to run on.
        query_tokens: query tokens per sequence; the most of one, or the mean of packed ones, if `ragged`.
        v_head_dim: elements of a value; None means `head_dim`.
        query_element_bytes: bytes of a query element; None means those of the cache, but at least 2.
        latent: whether the values are the first elements of the keys, as in MLA.
        ragged: whether the sequences may have different numbers of query tokens.
        packed_tokens: query tokens of all sequences, if they may be shared among them in any way.

    Returns:
        A tiling that fits the GPU's shared memory and keeps its accumulator in registers.

    Raises:
        ValueError: no tile fits, as of float32 with a head_dim of 512 and 99 KB.
    """
    v_head_dim = v_head_dim or head_dim
    rows = q_heads // kv_heads * query_tokens
    blocks = head_blocks(head_dim, v_head_dim, latent=latent)
    token_elements = blocks.d + blocks.r + (0 if latent else blocks.v)
    dot_bytes = max(2, element_bytes, query_element_bytes or 0)
    if latent and dot_bytes == 2 and blocks.d > _LARGEST_PADDED:
        tile = _latent_tile(rows, max(query_tokens, 2 if ragged else 1), blocks, element_bytes, limits)
    else:
        widest = max(head_dim, v_head_dim)
        ragged = ragged or takes_ragged_kernel(query_tokens, rows, widest)
        tile = _tile(rows, widest, blocks, token_elements, element_bytes, dot_bytes, limits, ragged=ragged)
    items = kv_heads * most_row_blocks(batch, rows, packed_tokens, q_heads // kv_heads, tile.block_g)
    most_tiles = items * (math.ceil(capacity / tile.block_n) + ITEM_COST_TILES)
    return DecodeTiling(
        block_g=tile.block_g,
        block_n=tile.block_n,
        programs=max(1, min(limits.sm_count * tile.per_sm, math.ceil(most_tiles / _MIN_CHUNK_TILES))),
        min_tiles=_MIN_CHUNK_TILES,
        num_warps=tile.warps,
        max_registers=tile.max_registers,
        # Page ids are prefetched as far ahead of the K and V loads as those are of their use.
        num_stages=tile.depth if page_size == 0 else 2 * tile.depth - 1,
    )


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """What of a tiling depends on neither batch nor capacity; `per_sm` CTAs are resident on an SM."""

    block_g: int
    block_n: int
    warps: int
    depth: int
    per_sm: int
    max_registers: int


def _latent_tile(
    rows: int, query_tokens: int, blocks: HeadBlocks, element_bytes: int, limits: GpuLimits
) -> _Tile:
    """The tile of a latent of more than 256 elements, whose queries and accumulator fill the registers.

    Queries of 576 elements are 144 registers of each warp that multiplies 16 rows, unless they stay in shared
    memory; an accumulator of 64 rows is 128 registers of 8 warps.
    """
    warp_groups = limits.compute_capability // 10 in {9, 10}
    if rows <= 16 or query_tokens != 1 or (element_bytes == 1 and not warp_groups):
        # More query tokens take a second accumulator in the last tiles.
        block_g, block_n, warps, depth = 16, 64, 8, 3
    elif warp_groups:  # both operands of a product are in shared memory
        # Triton 3.6 needs more shared memory on sm_100, where smaller tiles are as fast.
        small = element_bytes == 1 or limits.compute_capability // 10 == 10
        block_g, block_n, warps, depth = 64, 32 if small else 64, 8, 3 if small else 2
    else:
        block_g, block_n, warps, depth = 32, 64, 8, 2
    if block_g == 16 and not warp_groups and (element_bytes == 2 or limits.compute_capability < 89):
        block_n, depth = 32, 2 + element_bytes  # less shared memory; conversion from bits takes registers
    shared = functools.partial(_latent_shared_bytes, blocks, element_bytes, in_place=block_g == 64)
    # If shared memory is too small: first fewer pipeline stages, then smaller tiles, then fewer rows.
    block_g, block_n, depth = _first_that_fits(
        (fewer_rows, fewer_tokens, fewer_stages)
        for fewer_rows in _halved(block_g, 16)
        for fewer_tokens in _halved(block_n, EDGE_TOKENS)
        for fewer_stages in range(depth, 1, -1)
        if shared(fewer_rows, fewer_tokens, fewer_stages) <= limits.shared_bytes_per_block
    )
    by_shared = limits.shared_bytes_per_sm // (shared(block_g, block_n, depth) + 1024)
    return _Tile(
        block_g=block_g,
        block_n=block_n,
        warps=warps,
        depth=depth,
        per_sm=max(1, min(by_shared, 8 // warps)),
        max_registers=registers_for(warps, 8 // warps),
    )


def _latent_shared_bytes(
    blocks: HeadBlocks, element_bytes: int, block_g: int, block_n: int, depth: int, *, in_place: bool
) -> int:
    """Upper bound of the shared memory of a latent tile: stages, queries, scores, and a widened tile."""
    width = blocks.d + blocks.r
    stages = depth if in_place else depth - 1
    widened = 2 * block_n * blocks.d if element_bytes == 1 else 0
    tiles = stages * block_n * width * element_bytes + widened
    return max(tiles + 2 * block_g * (width + block_n), 4 * block_g * blocks.v) + 1024


def _tile(
    rows: int,
    head_dim: int,
    blocks: HeadBlocks,
    token_elements: int,
    element_bytes: int,
    dot_bytes: int,
    limits: GpuLimits,
    *,
    ragged: bool,
) -> _Tile:
    """The tile of keys and values that are loaded one by one, or of a small latent."""
    most_elements = _MAX_ACCUMULATOR_ELEMENTS
    if ragged:
        # Row blocks of ragged queries need registers of their own, and mma.sync more than wgmma and tcgen05.
        most_elements //= 2 if limits.compute_capability // 10 in {9, 10} else 4
    block_g = _block_g(rows, head_dim, dot_bytes, most_elements)
    # At least two CTAs per SM, so that one loads while the other computes. 8-bit elements are widened in
    # registers, and 32-bit elements need twice the registers of 16-bit ones: both get half the tile.
    tile_bytes = 32 * 1024 if limits.shared_bytes_per_sm >= 160 * 1024 else 16 * 1024
    tile_bytes //= 1 if element_bytes == dot_bytes == 2 else 2
    token_bytes = token_elements * (element_bytes if dot_bytes == 2 else 4)
    tokens = min(128, tile_bytes // token_bytes, max(32, most_elements // 2 // block_g))
    block_n = _power_of_two_within(max(EDGE_TOKENS, tokens))
    shared = functools.partial(_shared_bytes, limits, blocks, token_elements, element_bytes, dot_bytes)
    # If shared memory is too small: first fewer pipeline stages, then smaller tiles, then fewer rows.
    block_g, block_n, depth = _first_that_fits(
        (fewer_rows, fewer_tokens, depth)
        for fewer_rows in _halved(block_g, 1)
        for fewer_tokens in _halved(block_n, EDGE_TOKENS)
        for depth in range(3 if element_bytes == 2 else 4, 1, -1)  # 8-bit and 32-bit tiles are half as large
        if shared(fewer_rows, fewer_tokens, depth) <= limits.shared_bytes_per_block
    )
    warps, by_registers = _warps_and_occupancy(
        block_g, max(blocks.d, blocks.v), block_n, element_bytes, dot_bytes
    )
    by_shared = limits.shared_bytes_per_sm // (shared(block_g, block_n, depth) + 1024)
    return _Tile(
        block_g=block_g,
        block_n=block_n,
        warps=warps,
        depth=depth,
        per_sm=max(1, min(by_shared, by_registers)),
        # Register pressure must let all CTAs be resident at once. Without a limit the compiler uses more
        # registers, or spills to use fewer than it needs to.
        max_registers=registers_for(warps, by_registers),
    )


def takes_ragged_kernel(query_tokens: int, rows: int, head_dim: int) -> bool:
    """Whether as many query tokens of each sequence take the kernel that is compiled once for any number."""
    too_many_rows = query_tokens > 1 and rows * head_dim > _MAX_ACCUMULATOR_ELEMENTS
    return query_tokens > MAX_COMPILED_QUERY_TOKENS or too_many_rows


def most_row_blocks(batch: int, rows: int, packed_tokens: int | None, group: int, block_g: int) -> int:
    """Row blocks of all sequences at most: of `rows` rows each, or of packed tokens, shared in any way."""
    if packed_tokens is None:
        return batch * math.ceil(rows / block_g)
    # Each sequence may leave a block that is not full; and so may the tokens that belong to none.
    parts = min(batch + 1, packed_tokens)
    return max(1, (packed_tokens * group + parts * (block_g - 1)) // block_g)


def _block_g(rows: int, head_dim: int, dot_bytes: int, most_elements: int) -> int:
    """Rows of a work item; further rows are other items, which read the same K and V from L2."""
    if rows * head_dim > most_elements:
        return max(16, most_elements // next_power_of_two(head_dim))
    if dot_bytes == 4:
        # IEEE float32 products use the FMA units, not tensor cores: no padding of rows.
        return next_power_of_two(rows)
    return max(16, next_power_of_two(rows))  # an mma instruction of the tensor cores has 16 rows


def _warps_and_occupancy(
    block_g: int, block_d: int, block_n: int, element_bytes: int, dot_bytes: int
) -> tuple[int, int]:
    """Warps whose registers hold scores and accumulator, and the occupancy (CTAs per SM) with that many."""
    if block_g * block_d > _MAX_ACCUMULATOR_ELEMENTS:
        return 16, 1  # a head_dim that is not a power of two
    # The FMA units need both operands in registers.
    if (dot_bytes == 4 and block_d > 128) or block_g * (block_d + block_n) > 8192:
        return 8, 2 if dot_bytes == 4 and block_g <= 16 else 1
    small = block_g <= 16 and block_d <= 128 and block_n <= 64
    return 4, 3 if small and element_bytes == dot_bytes else 2


def _shared_bytes(
    limits: GpuLimits,
    blocks: HeadBlocks,
    token_elements: int,
    element_bytes: int,
    dot_bytes: int,
    block_g: int,
    block_n: int,
    depth: int,
) -> int:
    """Upper bound of the shared memory that Triton 3.6 to 3.9 allocate for a CTA of the split-KV kernel."""
    if dot_bytes == 4:
        # The FMA path passes all operands through shared memory, widened tiles and scores too. A tenth more
        # covers alignment gaps.
        widened = 0 if element_bytes == 4 else 4 * block_n * max(blocks.d, blocks.v)
        tiles = depth * block_n * token_elements * element_bytes + widened
        return (tiles + 4 * block_g * (blocks.d + blocks.r + 2 * block_n)) * 11 // 10
    # wgmma and tcgen05 (64 rows) read operands from shared memory; mma.sync copies a tile to registers first.
    in_place = block_g >= 64 and limits.compute_capability // 10 in {9, 10}
    tiles = (depth if in_place else depth - 1) * block_n * token_elements * element_bytes
    queries_and_probabilities = block_g * (blocks.d + blocks.r + block_n) * dot_bytes
    # The epilogue stages the result in shared memory to store it row by row.
    return max(tiles + queries_and_probabilities, 4 * block_g * blocks.v) + 2048


def _first_that_fits(tiles: Iterator[tuple[int, int, int]]) -> tuple[int, int, int]:
    """The first tile.

    Raises:
        ValueError: there is none.
    """
    found = next(tiles, None)
    if found is None:
        raise ValueError("q has a head_dim whose smallest tile exceeds the shared memory of this GPU")
    return found


def _halved(value: int, least: int) -> tuple[int, ...]:
    """A power of two, its half, its quarter, ..., down to `least`."""
    return tuple(value >> by for by in range((value // least).bit_length()))


def _power_of_two_within(value: int) -> int:
    return 1 << (value.bit_length() - 1)
