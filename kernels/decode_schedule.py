"""On-device work scheduling of decode attention: which KV tiles each CTA of the split-KV kernel takes.

A work **item** is a sequence, a key-value head and a block of query rows, in that order. Its cost is its
number of live KV tiles (BLOCK_N tokens each) plus ITEM_COST_TILES for starting it.

- Balanced (NUM_SPLITS 0): every CTA takes an equal-sized chunk of the KV tiles of the whole batch, across
  item boundaries. The context lengths are only on the device, so each CTA sums them itself.
- Split-KV (NUM_SPLITS n): each item is split into n chunks by its own length, so that its result does not
  depend on the rest of the batch.

An item that several CTAs share leaves one split-KV partial per CTA. A CTA leaves at most two: one of an item
that an earlier CTA began, in its **continued** slot, and one of an item that it began and did not finish, in
its **begun** slot. The partials of an item belong to consecutive CTAs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .interpreter import patch_interpreter

patch_interpreter()

LENGTHS_BLOCK = 128
"""Context lengths that a CTA reads at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def live_tokens(
    lengths: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    QUERY_TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
) -> tl.tuple:
    """Tokens [begin, end) that at least one query token of a sequence of this length attends to."""
    end = tl.minimum(tl.maximum(lengths, 0), capacity).to(tl.int32)
    begin = tl.maximum(end - window - (QUERY_TOKENS - 1), 0) if HAS_WINDOW else end * 0
    return begin, end


@triton.jit  # type: ignore[untyped-decorator]
def live_tiles(
    lengths: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    QUERY_TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """The first KV tile with live tokens, and how many have some. Tiles start at multiples of BLOCK_N."""
    begin, end = live_tokens(lengths, capacity, window, QUERY_TOKENS, HAS_WINDOW)
    return begin // BLOCK_N, tl.cdiv(end, BLOCK_N) - begin // BLOCK_N


@triton.jit  # type: ignore[untyped-decorator]
def split_chunk(
    program: tl.tensor,
    context_lens_ptr: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    items_per_sequence: tl.tensor,
    QUERY_TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tuple:
    """The chunk of an item that this CTA takes, one of NUM_SPLITS; returns the values of `balanced_chunk`."""
    item = program // NUM_SPLITS
    split = program % NUM_SPLITS
    length = tl.load(context_lens_ptr + item // items_per_sequence)
    _, tiles = live_tiles(length, capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N)
    tiles_per_split = tl.maximum(tl.cdiv(tiles, NUM_SPLITS), 1)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    num_partials = tl.cdiv(tiles, tiles_per_split)
    has_work = (first < tiles) | (split == 0)
    begun = (split == 0) & (num_partials > 1)
    return item, first, item + has_work.to(tl.int32), item, last, tl.where(begun, num_partials, 0)


@triton.jit  # type: ignore[untyped-decorator]
def balanced_chunk(
    program: tl.tensor,
    programs: tl.tensor,
    context_lens_ptr: tl.tensor,
    batch: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    items_per_sequence: tl.tensor,
    QUERY_TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ITEM_COST_TILES: tl.constexpr,
    LENGTHS_BLOCK: tl.constexpr,
) -> tl.tuple:
    """This CTA's equal-sized chunk of all KV tiles, at least MIN_TILES long.

    The unit of cost is a tile; the ITEM_COST_TILES of an item come before its tiles. If a chunk ends within
    them, the next CTA takes the item.

    Returns:
        The first item; its first tile; the item after the last one to process; the last item of the chunk,
        which may be left to the next CTA; the tile after its last; and the number of partials of the item
        that this CTA begins and does not finish, 0 if there is none.
    """
    offsets = tl.arange(0, LENGTHS_BLOCK)
    total = tl.zeros((), tl.int64)
    for start in range(0, batch, LENGTHS_BLOCK):
        lengths = tl.load(context_lens_ptr + start + offsets, mask=start + offsets < batch, other=0)
        _, tiles = live_tiles(lengths, capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N)
        total += tl.sum(tl.where(start + offsets < batch, tiles + ITEM_COST_TILES, 0).to(tl.int64), 0)
    total *= items_per_sequence
    chunk = tl.maximum(tl.cdiv(total, programs), MIN_TILES)
    first_unit = tl.minimum(program * chunk, total)
    last_unit = tl.minimum(first_unit + chunk, total) - 1

    # The number of sequences that end before the first and the last unit, and their units.
    first_sequence, first_before = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
    last_sequence, last_before = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
    before = tl.zeros((), tl.int64)
    for start in range(0, batch, LENGTHS_BLOCK):
        live = start + offsets < batch
        lengths = tl.load(context_lens_ptr + start + offsets, mask=live, other=0)
        _, tiles = live_tiles(lengths, capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N)
        units = tl.where(live, tiles + ITEM_COST_TILES, 0).to(tl.int64) * items_per_sequence
        through = before + tl.cumsum(units, 0)
        before_first, before_last = live & (through <= first_unit), live & (through <= last_unit)
        first_sequence += tl.sum(before_first.to(tl.int32), 0)
        last_sequence += tl.sum(before_last.to(tl.int32), 0)
        first_before = tl.maximum(first_before, tl.max(tl.where(before_first, through, 0), 0))
        last_before = tl.maximum(last_before, tl.max(tl.where(before_last, through, 0), 0))
        before += tl.sum(units, 0)

    first_sequence = tl.minimum(first_sequence, batch - 1)  # of a CTA without work
    last_sequence = tl.minimum(last_sequence, batch - 1)
    _, tiles = live_tiles(
        tl.load(context_lens_ptr + first_sequence), capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N
    )
    units = (tiles + ITEM_COST_TILES).to(tl.int64)
    first_item = first_sequence * items_per_sequence + ((first_unit - first_before) // units).to(tl.int32)
    first_tile = tl.maximum((first_unit - first_before) % units - ITEM_COST_TILES, 0).to(tl.int32)

    _, tiles = live_tiles(
        tl.load(context_lens_ptr + last_sequence), capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N
    )
    units = (tiles + ITEM_COST_TILES).to(tl.int64)
    last_item = last_sequence * items_per_sequence + ((last_unit - last_before) // units).to(tl.int32)
    done_units = (last_unit - last_before) % units + 1  # of the last item, up to the end of this chunk
    last_tile = tl.maximum(done_units - ITEM_COST_TILES, 0).to(tl.int32)
    units_left = units - done_units
    begun = (last_tile > 0) & (units_left > 0) & ((last_item > first_item) | (first_tile == 0))
    stop_item = tl.where((last_tile > 0) | (units_left == 0), last_item + 1, last_item)
    idle = first_unit > last_unit
    num_partials = tl.where(begun & (idle == 0), 1 + tl.cdiv(units_left, chunk), 0).to(tl.int32)
    return first_item, first_tile, tl.where(idle, first_item, stop_item), last_item, last_tile, num_partials
