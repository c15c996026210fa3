"""The work of each program (CTA) of a launch: the kernels' scheduling arithmetic in plain Python.

The kernels compute it on the device from the program id. Tests compare both, in launches recorded in the
interpreter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ...kernels.decode_tiling import ITEM_COST_TILES, MAX_COMPILED_QUERY_TOKENS, most_row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...kernels.decode_tiling import DecodeTiling
    from ...kernels.matmul_tiling import MatmulTiling
    from ..core.cases import MatmulShape

PARTIAL_BYTES = 4
"""Bytes of an element of a split-K or split-KV partial, which is float32."""

PARTIAL_COUNT_BYTES = 8
"""Bytes that a CTA of decode attention writes for the combine kernel: its last item, and a partial count."""


class WorkTile(NamedTuple):
    """An output tile of a matmul over the K tiles [first_k, last_k).

    Attributes:
        block_m: row block of x, in units of `MatmulTiling.block_m` rows.
        block_n: row block of the weight, in units of `MatmulTiling.block_columns`.
        split: index of the split-K slice.
        first_k: first step over K, in units of `MatmulTiling.block_k`.
        last_k: the step after the last; `first_k` where the slice is empty.
        whole: whether the tile is not split along K.
    """

    block_m: int
    block_n: int
    split: int
    first_k: int
    last_k: int
    whole: bool


class KvChunk(NamedTuple):
    """What one CTA of decode attention computes of one item: tokens [begin, end) of a key-value head.

    Attributes:
        sequence: index in the batch.
        kv_head: key-value head.
        row_block: block of the GQA group's query rows, in units of `DecodeTiling.block_g`.
        begin: first token.
        end: the token after the last; `begin` where the sequence has no live token.
        whole: whether these are all live tokens, so that the CTA writes the output and no partial.
    """

    sequence: int
    kv_head: int
    row_block: int
    begin: int
    end: int
    whole: bool


def matmul_tile_order(shape: MatmulShape[int], tiling: MatmulTiling) -> tuple[WorkTile, ...]:
    """The work tiles of `prefill_matmul` in launch order: `whole_tiles` first, then the split-K tail.

    Output tiles are in grouped order (see `grouped_tile`). The split-K slices of one tile are neighbours.

    Args:
        shape: M, N and K.
        tiling: tile sizes, splits and group size.

    Returns:
        `whole_tiles` of the ceil(M / block_m) x ceil(N / block_columns) tiles, and num_splits slices of each
        other one. With pointers each CTA computes one; in the persistent TMA kernel CTA p computes work tiles
        p, p + programs and so on.
    """
    blocks_m = math.ceil(shape.rows / tiling.block_m)
    blocks_n = math.ceil(shape.out_features / tiling.block_columns)
    k_tiles = math.ceil(shape.in_features / tiling.block_k)
    steps = math.ceil(k_tiles / tiling.num_splits)
    edges = [min(split * steps, k_tiles) for split in range(tiling.num_splits + 1)]
    tiles = [grouped_tile(tile, blocks_m, blocks_n, tiling.group_m) for tile in range(blocks_m * blocks_n)]
    whole = len(tiles) if tiling.num_splits == 1 else min(tiling.whole_tiles, len(tiles))
    order = [WorkTile(*tile, 0, 0, k_tiles, True) for tile in tiles[:whole]]
    order += [
        WorkTile(*tile, split, edges[split], edges[split + 1], False)
        for tile in tiles[whole:]
        for split in range(tiling.num_splits)
    ]
    return tuple(order)


def grouped_tile(tile: int, blocks_m: int, blocks_n: int, group_m: int) -> tuple[int, int]:
    """Row block and column block of a tile in grouped (swizzled) order.

    Within a group of `group_m` row blocks the order is column-major: down the rows, then to the next column.
    """
    group, in_group = divmod(tile, group_m * blocks_n)
    group_rows = min(blocks_m - group * group_m, group_m)
    return group * group_m + in_group % group_rows, in_group // group_rows


def decode_chunk_order(
    *,
    context_lens: Sequence[int],
    capacity: int,
    q_heads: int,
    kv_heads: int,
    tiling: DecodeTiling,
    query_tokens: int = 1,
    q_lens: Sequence[int] | None = None,
    window: int | None = None,
    item_cost_tiles: int = ITEM_COST_TILES,
) -> tuple[tuple[KvChunk, ...], ...]:
    """The KV chunks that each CTA of `decode_attention`'s split-KV kernel computes, in launch order.

    An item is a sequence, a key-value head and a block of query rows, in that order. See
    `kernels/decode_schedule.py` for the two ways to divide them. With ragged queries, and with more query
    tokens than the kernel is compiled for, each row block ends with its own last query token, and chunks are
    cut between units of several tiles (`kernels/decode_ragged_schedule.py`).

    Args:
        context_lens: live tokens of each sequence; clamped to 0..capacity as the kernel does.
        capacity: tokens that the cache of one sequence can hold.
        q_heads: query heads.
        kv_heads: key-value heads.
        tiling: tile sizes and splits.
        query_tokens: query tokens per sequence.
        q_lens: query tokens of each sequence, if they are ragged and packed; then `query_tokens` is ignored.
        window: sliding window in tokens; None for none.
        item_cost_tiles: cost of starting an item, in KV tiles.

    Returns:
        The chunks of each CTA, none for a CTA without work. With `num_splits` above 0 there are
        items x num_splits CTAs (with ragged queries for as many items as there can be), else `programs`.
    """
    group, batch = q_heads // kv_heads, len(context_lens)
    packed_tokens = None if q_lens is None else sum(q_lens)
    lens = [query_tokens] * batch if q_lens is None else list(q_lens)
    ragged = takes_row_blocks(query_tokens, group, tiling) if q_lens is None else True
    unit = tiling.block_g // math.gcd(tiling.block_g, group * tiling.block_n) if ragged else 1
    items: list[_Item] = []
    for sequence, (context, tokens) in enumerate(zip(context_lens, lens, strict=True)):
        length = min(max(context, 0), capacity)
        blocks = range(math.ceil(group * tokens / tiling.block_g))
        for kv_head in range(kv_heads):
            for row_block in blocks:
                first, last = 0, tokens - 1
                if ragged:
                    first = row_block * tiling.block_g // group
                    last = min(((row_block + 1) * tiling.block_g - 1) // group, last)
                stop = max(length - tokens + last + 1, 0)
                start = 0 if window is None else max(length - tokens + first + 1 - min(window, capacity), 0)
                start = min(start, stop)
                items.append(_Item(sequence, kv_head, row_block, start, stop, tiling.block_n * unit))
    if tiling.num_splits:
        most_items = kv_heads * most_row_blocks(
            batch, group * query_tokens, packed_tokens, group, tiling.block_g
        )
        chunks = [chunks for item in items for chunks in _split_chunks(item, tiling.num_splits)]
        return (*chunks, *[()] * (most_items * tiling.num_splits - len(chunks)))
    return _balanced_chunks(items, tiling.programs, tiling.min_tiles, item_cost_tiles)


def takes_row_blocks(query_tokens: int, group: int, tiling: DecodeTiling) -> bool:
    """Whether so many query tokens of each sequence run as ragged ones do."""
    more_blocks = query_tokens > 1 and group * query_tokens > tiling.block_g
    return query_tokens > MAX_COMPILED_QUERY_TOKENS or more_blocks


class _Item(NamedTuple):
    """Live tokens [start, stop) of a sequence, for one key-value head and block of query rows.

    Chunks are cut at multiples of `block_n` tokens.
    """

    sequence: int
    kv_head: int
    row_block: int
    start: int
    stop: int
    block_n: int

    @property
    def tiles(self) -> int:
        """KV tiles that hold live tokens; they start at multiples of `block_n`."""
        return math.ceil(self.stop / self.block_n) - self.start // self.block_n

    def chunk(self, first: int, last: int) -> KvChunk:
        """Tiles [first, last), counted from the first live one."""
        first_tile = self.start // self.block_n
        begin = max((first_tile + first) * self.block_n, self.start)
        end = min((first_tile + last) * self.block_n, self.stop)
        whole = first == 0 and last == self.tiles
        return KvChunk(self.sequence, self.kv_head, self.row_block, begin, max(begin, end), whole)


def _split_chunks(item: _Item, num_splits: int) -> Iterator[tuple[KvChunk, ...]]:
    """One chunk per split; the first split of an empty item has a chunk of no tokens."""
    tiles = item.tiles
    per_split = max(math.ceil(tiles / num_splits), 1)
    for split in range(num_splits):
        first = split * per_split
        has_work = first < tiles or split == 0
        yield (item.chunk(first, min(first + per_split, tiles)),) if has_work else ()


def _balanced_chunks(
    items: Sequence[_Item], programs: int, min_tiles: int, item_cost_tiles: int
) -> tuple[tuple[KvChunk, ...], ...]:
    """Divides the cost of all items, each `item_cost_tiles` and then its tiles, into equal chunks."""
    total = sum(item.tiles + item_cost_tiles for item in items)
    chunk_tiles = max(-(-total // programs), min_tiles)
    chunks: list[list[KvChunk]] = [[] for _ in range(programs)]
    before = 0
    for item in items:
        tiles = item.tiles
        cost = tiles + item_cost_tiles
        for program in range(before // chunk_tiles, -(-(before + cost) // chunk_tiles)):
            first = max(program * chunk_tiles - before - item_cost_tiles, 0)
            last = min((program + 1) * chunk_tiles - before, cost) - item_cost_tiles
            # A chunk that ends within an item's starting cost leaves the item to the next CTA.
            if last > first or last == tiles == 0:
                chunks[program].append(item.chunk(first, last))
        before += cost
    return tuple(map(tuple, chunks))
