"""Which part of the work each program of a decode attention takes, worked out on the device.

The work is a row of **items**, one a sequence, key-value head and block of query rows, in that order. An item
is its sequence's live tokens in tiles of BLOCK_N, and counts PART_TILES more for what it costs to begin one.

- Balanced (NUM_SPLITS 0): every program takes an equal share of all tiles of the batch, whichever items they
  fall in. Lengths are on the device alone, so each program adds them up for itself.
- Split (NUM_SPLITS n): each item is cut into n shares by its own length, so that its result does not depend
  on the rest of the batch.

An item that several programs have a part of leaves a partial result each. A program has at most two: of an
item that an earlier program began, kept in its **continued** slot, and of one that it began and did not end,
in its **begun** slot. The parts of one item lie with consecutive programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .interpreter import mend_interpreter

mend_interpreter()

LENGTHS_BLOCK = 128
"""Lengths that a program reads at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def live_tokens(
    lengths: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    QUERY_TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
) -> tl.tuple:
    """Tokens [begin, end) that some query token of a sequence of this length sees."""
    end = tl.minimum(tl.maximum(lengths, 0), capacity)
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
    """The first tile that holds such tokens, and how many do. Tiles start at multiples of BLOCK_N."""
    begin, end = live_tokens(lengths, capacity, window, QUERY_TOKENS, HAS_WINDOW)
    return begin // BLOCK_N, tl.cdiv(end, BLOCK_N) - begin // BLOCK_N


@triton.jit  # type: ignore[untyped-decorator]
def split_share(
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
    """One of NUM_SPLITS shares of one item; as `balanced_share` returns it."""
    item = program // NUM_SPLITS
    split = program % NUM_SPLITS
    length = tl.load(context_lens_ptr + item // items_per_sequence)
    _, tiles = live_tiles(length, capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N)
    tiles_per_split = tl.maximum(tl.cdiv(tiles, NUM_SPLITS), 1)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    parts = tl.cdiv(tiles, tiles_per_split)
    held = (first < tiles) | (split == 0)
    begun = (split == 0) & (parts > 1)
    return item, first, item + held.to(tl.int32), item, last, tl.where(begun, parts, 0)


@triton.jit  # type: ignore[untyped-decorator]
def balanced_share(
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
    PART_TILES: tl.constexpr,
    LENGTHS_BLOCK: tl.constexpr,
) -> tl.tuple:
    """An equal share, of at least MIN_TILES, of the tiles of all items.

    Units are tiles, PART_TILES of each item coming before its first. A share that ends among those leaves the
    item to the next program.

    Returns:
        First item; the first of its tiles; the item after the last; the last item, which may be left to the
        next program; the tile after the last of the last item; of the item begun and not ended, into how many
        parts it is cut, else 0.
    """
    offsets = tl.arange(0, LENGTHS_BLOCK)
    total = tl.zeros((), tl.int64)
    for start in range(0, batch, LENGTHS_BLOCK):
        lengths = tl.load(context_lens_ptr + start + offsets, mask=start + offsets < batch, other=0)
        _, tiles = live_tiles(lengths, capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N)
        total += tl.sum(tl.where(start + offsets < batch, tiles + PART_TILES, 0).to(tl.int64), 0)
    total *= items_per_sequence
    share = tl.maximum(tl.cdiv(total, programs), MIN_TILES)
    first_unit = tl.minimum(program * share, total)
    last_unit = tl.minimum(first_unit + share, total) - 1

    # The sequences that lie wholly before a unit, and their units.
    first_sequence, first_before = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
    last_sequence, last_before = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
    before = tl.zeros((), tl.int64)
    for start in range(0, batch, LENGTHS_BLOCK):
        live = start + offsets < batch
        lengths = tl.load(context_lens_ptr + start + offsets, mask=live, other=0)
        _, tiles = live_tiles(lengths, capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N)
        units = tl.where(live, tiles + PART_TILES, 0).to(tl.int64) * items_per_sequence
        through = before + tl.cumsum(units, 0)
        before_first, before_last = live & (through <= first_unit), live & (through <= last_unit)
        first_sequence += tl.sum(before_first.to(tl.int32), 0)
        last_sequence += tl.sum(before_last.to(tl.int32), 0)
        first_before = tl.maximum(first_before, tl.max(tl.where(before_first, through, 0), 0))
        last_before = tl.maximum(last_before, tl.max(tl.where(before_last, through, 0), 0))
        before += tl.sum(units, 0)

    first_sequence = tl.minimum(first_sequence, batch - 1)  # of a program that has no share
    last_sequence = tl.minimum(last_sequence, batch - 1)
    _, tiles = live_tiles(
        tl.load(context_lens_ptr + first_sequence), capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N
    )
    units = (tiles + PART_TILES).to(tl.int64)
    first_item = first_sequence * items_per_sequence + ((first_unit - first_before) // units).to(tl.int32)
    first_tile = tl.maximum((first_unit - first_before) % units - PART_TILES, 0).to(tl.int32)

    _, tiles = live_tiles(
        tl.load(context_lens_ptr + last_sequence), capacity, window, QUERY_TOKENS, HAS_WINDOW, BLOCK_N
    )
    units = (tiles + PART_TILES).to(tl.int64)
    last_item = last_sequence * items_per_sequence + ((last_unit - last_before) // units).to(tl.int32)
    ended = (last_unit - last_before) % units + 1  # units of the last item
    last_tile = tl.maximum(ended - PART_TILES, 0).to(tl.int32)
    left = units - ended
    begun = (last_tile > 0) & (left > 0) & ((last_item > first_item) | (first_tile == 0))
    stop_item = tl.where((last_tile > 0) | (left == 0), last_item + 1, last_item)
    idle = first_unit > last_unit
    parts = tl.where(begun & (idle == 0), 1 + tl.cdiv(left, share), 0).to(tl.int32)
    return first_item, first_tile, tl.where(idle, first_item, stop_item), last_item, last_tile, parts
