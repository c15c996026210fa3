"""On-device work scheduling of decode attention with ragged queries: any number of query tokens a sequence.

The query rows of a sequence and key-value head (token x GROUP + head of the group) are cut into **row
blocks** of BLOCK_G. A work **item** is a sequence, a key-value head and a row block, in that order. Attention
among query tokens is causal, so each row block has live tokens [begin, end) of its own. How many query tokens
a sequence has is known on the device alone: the host knows only a bound on the row blocks.

The KV tokens of an item are counted in units of UNIT_N tokens, a multiple of BLOCK_N; its cost is its live
units and ITEM_COST_TILES. As in `decode_schedule`, every CTA takes an equal-sized chunk of all units, or
(NUM_SPLITS n) each item is split into n chunks.

UNIT_N is such that RATIO = GROUP UNIT_N / BLOCK_G is an integer. The units of row block i of a sequence are
then floor((c + i) / RATIO), and their sum has a closed form: no CTA loops over row blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .interpreter import patch_interpreter

patch_interpreter()


@triton.jit  # type: ignore[untyped-decorator]
def ragged_queries(
    sequence: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    q_lens_ptr: tl.tensor,
    batch: tl.tensor,
    query_tokens: tl.tensor,
) -> tl.tuple:
    """Query tokens of sequences: the first one's place in packed queries, how many have rows, and are live.

    The rows of tokens that are not live get output 0. Packed queries (cu_seqlens) have one sequence more than
    the batch: the tokens after the last sequence, of which none is live. Lengths out of range are clamped.
    """
    in_batch = sequence < batch
    start = sequence * 0
    tokens = start + query_tokens
    live = tokens
    if cu_seqlens_ptr is not None:
        inside = (sequence >= 0) & (sequence <= batch)
        start = tl.load(cu_seqlens_ptr + sequence, mask=inside, other=0)
        stop = tl.load(cu_seqlens_ptr + sequence + 1, mask=in_batch, other=0)
        start = tl.minimum(tl.maximum(start, 0), query_tokens).to(tl.int32)
        stop = tl.minimum(tl.maximum(stop, start), query_tokens).to(tl.int32)
        tokens = tl.where(in_batch, stop, query_tokens) - start
        live = tl.where(in_batch, tokens, 0)
    elif q_lens_ptr is not None:
        live = tl.load(q_lens_ptr + sequence, mask=in_batch, other=0)
        live = tl.minimum(tl.maximum(live, 0), query_tokens).to(tl.int32)
    return start, tokens, live


@triton.jit  # type: ignore[untyped-decorator]
def clamped_length(
    context_lens_ptr: tl.tensor, sequence: tl.tensor, batch: tl.tensor, capacity: tl.tensor
) -> tl.tensor:
    """Context length of a sequence, in 0..capacity; 0 for one that is not in the batch."""
    length = tl.load(context_lens_ptr + sequence, mask=sequence < batch, other=0)
    return tl.minimum(tl.maximum(length, 0), capacity).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def row_block_tokens(
    block: tl.tensor,
    length: tl.tensor,
    live: tl.tensor,
    window: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
) -> tl.tuple:
    """Tokens [begin, end) that some row of a block attends to, and the end of those that all rows attend to.

    The `live` query tokens of a sequence are its last ones. All are 0 for a block without live rows.
    """
    first_token = block * BLOCK_G // GROUP
    last_token = tl.minimum((block * BLOCK_G + (BLOCK_G - 1)) // GROUP, live - 1)
    end = tl.where(first_token < live, tl.maximum(length - live + last_token + 1, 0), 0)
    common_end = tl.minimum(tl.maximum(length - live + first_token + 1, 0), end)
    begin = tl.maximum(length - live + first_token + 1 - window, 0) if HAS_WINDOW else end * 0
    return tl.minimum(begin, end), end, common_end


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of_quotients(count: tl.tensor, DIVISOR: tl.constexpr) -> tl.tensor:
    """Sum of n // DIVISOR for n from 0 to count - 1; 0 where count is not positive."""
    count = tl.maximum(count, 0)
    steps = count // DIVISOR
    return steps * (steps - 1) // 2 * DIVISOR + steps * (count - steps * DIVISOR)


@triton.jit  # type: ignore[untyped-decorator]
def _floor_quotient(x: tl.tensor, DIVISOR: tl.constexpr) -> tl.tensor:
    """The quotient rounded down, also of negative numbers."""
    return tl.where(x >= 0, x // DIVISOR, -((DIVISOR - 1 - x) // DIVISOR))


@triton.jit  # type: ignore[untyped-decorator]
def _units_before(
    block: tl.tensor,
    length: tl.tensor,
    live: tl.tensor,
    window: tl.tensor,
    GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_G: tl.constexpr,
    UNIT_N: tl.constexpr,
    ITEM_COST_TILES: tl.constexpr,
) -> tl.tensor:
    """Cost of the row blocks before `block` of a sequence and key-value head, int64.

    With position p of the first query token, block i ends at p + 1 + (i BLOCK_G + BLOCK_G - 1) // GROUP. Its
    units up to there are ceil(that / UNIT_N) = (c + i) // RATIO, and 0 where that is negative. The last block
    with live rows may end earlier, and is added apart.
    """
    RATIO: tl.constexpr = GROUP * UNIT_N // BLOCK_G
    position = (length - live).to(tl.int64)
    live_blocks = tl.cdiv(live * GROUP, BLOCK_G)
    full_blocks = tl.minimum(block, tl.maximum(live_blocks - 1, 0)).to(tl.int64)
    first = _floor_quotient((position + UNIT_N) * GROUP + (BLOCK_G - 1), BLOCK_G)
    units = _sum_of_quotients(first + full_blocks, RATIO) - _sum_of_quotients(first, RATIO)
    if HAS_WINDOW:
        first = _floor_quotient((position + 1 - window) * GROUP, BLOCK_G)
        units -= _sum_of_quotients(first + full_blocks, RATIO) - _sum_of_quotients(first, RATIO)
    begin, end, _ = row_block_tokens(live_blocks - 1, length, live, window, GROUP, BLOCK_G, HAS_WINDOW)
    last_units = tl.cdiv(end, UNIT_N) - begin // UNIT_N
    units += tl.where((block >= live_blocks) & (live_blocks > 0), last_units, 0)
    return units + block.to(tl.int64) * ITEM_COST_TILES


@triton.jit  # type: ignore[untyped-decorator]
def sequence_of_item(
    item: tl.tensor,
    sequence: tl.tensor,
    sequence_item: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    q_lens_ptr: tl.tensor,
    batch: tl.tensor,
    query_tokens: tl.tensor,
    kv_heads: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> tl.tuple:
    """The sequence of an item, its first item, and its row blocks, from a sequence at or before it."""
    _, tokens, _ = ragged_queries(sequence, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens)
    row_blocks = tl.cdiv(tokens * GROUP, BLOCK_G)
    while item >= sequence_item + row_blocks * kv_heads:
        sequence_item += row_blocks * kv_heads
        sequence += 1
        _, tokens, _ = ragged_queries(sequence, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens)
        row_blocks = tl.cdiv(tokens * GROUP, BLOCK_G)
    return sequence, sequence_item, row_blocks


@triton.jit  # type: ignore[untyped-decorator]
def ragged_split_chunk(
    program: tl.tensor,
    context_lens_ptr: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    q_lens_ptr: tl.tensor,
    batch: tl.tensor,
    sequences: tl.tensor,
    query_tokens: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    kv_heads: tl.tensor,
    GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    UNIT_N: tl.constexpr,
    LENGTHS_BLOCK: tl.constexpr,
) -> tl.tuple:
    """The chunk of an item that this CTA takes, one of NUM_SPLITS; returns the values of `ragged_chunk`.

    The grid has CTAs for as many items as there can be; those past the last item have no work.
    """
    item = program // NUM_SPLITS
    split = program % NUM_SPLITS
    offsets = tl.arange(0, LENGTHS_BLOCK)
    sequence, sequence_item = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    before = tl.zeros((), tl.int32)
    for start in range(0, sequences, LENGTHS_BLOCK):
        at = start + offsets
        _, tokens, _ = ragged_queries(at, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens)
        items = tl.where(at < sequences, tl.cdiv(tokens * GROUP, BLOCK_G), 0) * kv_heads
        through = before + tl.cumsum(items, 0)
        ended = (at < sequences) & (through <= item)
        sequence += tl.sum(ended.to(tl.int32), 0)
        sequence_item = tl.maximum(sequence_item, tl.max(tl.where(ended, through, 0), 0))
        before += tl.sum(items, 0)
    exists = item < before
    sequence = tl.minimum(sequence, sequences - 1)
    _, tokens, live = ragged_queries(sequence, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens)
    row_blocks = tl.maximum(tl.cdiv(tokens * GROUP, BLOCK_G), 1)
    length = clamped_length(context_lens_ptr, sequence, batch, capacity)
    block = (item - sequence_item) % row_blocks
    begin, end, _ = row_block_tokens(block, length, live, window, GROUP, BLOCK_G, HAS_WINDOW)
    units = tl.cdiv(end, UNIT_N) - begin // UNIT_N
    units_per_split = tl.maximum(tl.cdiv(units, NUM_SPLITS), 1)
    first = split * units_per_split
    last = tl.minimum(first + units_per_split, units)
    num_partials = tl.cdiv(units, units_per_split)
    has_work = exists & ((first < units) | (split == 0))
    begun = exists & (split == 0) & (num_partials > 1)
    return (
        item, first, item + has_work.to(tl.int32), item, last, tl.where(begun, num_partials, 0),
        sequence, sequence_item, sequence, sequence_item,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _place_of_unit(
    unit: tl.tensor,
    sequence: tl.tensor,
    context_lens_ptr: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    q_lens_ptr: tl.tensor,
    batch: tl.tensor,
    query_tokens: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_G: tl.constexpr,
    UNIT_N: tl.constexpr,
    ITEM_COST_TILES: tl.constexpr,
) -> tl.tuple:
    """The item within a sequence that holds the unit, the unit within the item, and the item's units."""
    _, tokens, live = ragged_queries(sequence, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens)
    length = clamped_length(context_lens_ptr, sequence, batch, capacity)
    row_blocks = tl.cdiv(tokens * GROUP, BLOCK_G)
    head_units = _units_before(
        row_blocks, length, live, window, GROUP, HAS_WINDOW, BLOCK_G, UNIT_N, ITEM_COST_TILES
    )
    head_units = tl.maximum(head_units, 1)  # of a CTA without work
    kv_head = (unit // head_units).to(tl.int32)
    rest = unit % head_units
    # Binary search: the last row block that begins at or before the unit.
    low, high = row_blocks * 0, tl.maximum(row_blocks - 1, 0)
    while low < high:
        middle = (low + high + 1) // 2
        before = _units_before(
            middle, length, live, window, GROUP, HAS_WINDOW, BLOCK_G, UNIT_N, ITEM_COST_TILES
        )
        low = tl.where(before <= rest, middle, low)
        high = tl.where(before <= rest, high, middle - 1)
    begin, end, _ = row_block_tokens(low, length, live, window, GROUP, BLOCK_G, HAS_WINDOW)
    units = tl.cdiv(end, UNIT_N) - begin // UNIT_N + ITEM_COST_TILES
    rest -= _units_before(low, length, live, window, GROUP, HAS_WINDOW, BLOCK_G, UNIT_N, ITEM_COST_TILES)
    return kv_head * row_blocks + low, rest, units.to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def ragged_chunk(
    program: tl.tensor,
    programs: tl.tensor,
    context_lens_ptr: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    q_lens_ptr: tl.tensor,
    batch: tl.tensor,
    sequences: tl.tensor,
    query_tokens: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    kv_heads: tl.tensor,
    GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BLOCK_G: tl.constexpr,
    UNIT_N: tl.constexpr,
    ITEM_COST_TILES: tl.constexpr,
    LENGTHS_BLOCK: tl.constexpr,
) -> tl.tuple:
    """This CTA's equal-sized chunk of the units of all items, at least MIN_TILES long.

    Returns:
        The first six as `balanced_chunk`, in units of UNIT_N tokens; the sequence of the first item and that
        sequence's first item; and both of the last item.
    """
    offsets = tl.arange(0, LENGTHS_BLOCK)
    total = tl.zeros((), tl.int64)
    for start in range(0, sequences, LENGTHS_BLOCK):
        at = start + offsets
        _, tokens, live = ragged_queries(at, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens)
        length = clamped_length(context_lens_ptr, at, batch, capacity)
        units = _units_before(
            tl.cdiv(tokens * GROUP, BLOCK_G), length, live, window,
            GROUP, HAS_WINDOW, BLOCK_G, UNIT_N, ITEM_COST_TILES,
        )  # fmt: skip
        total += tl.sum(tl.where(at < sequences, units, 0), 0)
    total *= kv_heads
    chunk = tl.maximum(tl.cdiv(total, programs), MIN_TILES)
    first_unit = tl.minimum(program * chunk, total)
    last_unit = tl.minimum(first_unit + chunk, total) - 1

    # The number of sequences that end before the first and the last unit, and their units and items.
    first_sequence, first_before = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
    last_sequence, last_before = tl.zeros((), tl.int32), tl.zeros((), tl.int64)
    first_sequence_item, last_sequence_item = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    before = tl.zeros((), tl.int64)
    for start in range(0, sequences, LENGTHS_BLOCK):
        at = start + offsets
        exists = at < sequences
        _, tokens, live = ragged_queries(at, cu_seqlens_ptr, q_lens_ptr, batch, query_tokens)
        length = clamped_length(context_lens_ptr, at, batch, capacity)
        row_blocks = tl.cdiv(tokens * GROUP, BLOCK_G)
        units = _units_before(
            row_blocks, length, live, window, GROUP, HAS_WINDOW, BLOCK_G, UNIT_N, ITEM_COST_TILES
        )
        units = tl.where(exists, units * kv_heads, 0)
        through = before + tl.cumsum(units, 0)
        before_first, before_last = exists & (through <= first_unit), exists & (through <= last_unit)
        first_sequence += tl.sum(before_first.to(tl.int32), 0)
        last_sequence += tl.sum(before_last.to(tl.int32), 0)
        first_before = tl.maximum(first_before, tl.max(tl.where(before_first, through, 0), 0))
        last_before = tl.maximum(last_before, tl.max(tl.where(before_last, through, 0), 0))
        first_sequence_item += tl.sum(tl.where(before_first, row_blocks, 0), 0)
        last_sequence_item += tl.sum(tl.where(before_last, row_blocks, 0), 0)
        before += tl.sum(units, 0)

    first_sequence = tl.minimum(first_sequence, sequences - 1)  # of a CTA without work
    last_sequence = tl.minimum(last_sequence, sequences - 1)
    first_sequence_item *= kv_heads
    last_sequence_item *= kv_heads
    item, first_units, _ = _place_of_unit(
        first_unit - first_before, first_sequence, context_lens_ptr, cu_seqlens_ptr, q_lens_ptr, batch,
        query_tokens, capacity, window, GROUP, HAS_WINDOW, BLOCK_G, UNIT_N, ITEM_COST_TILES,
    )  # fmt: skip
    first_item = first_sequence_item + item
    first = tl.maximum(first_units - ITEM_COST_TILES, 0).to(tl.int32)

    item, last_units, units = _place_of_unit(
        tl.maximum(last_unit - last_before, 0), last_sequence, context_lens_ptr, cu_seqlens_ptr, q_lens_ptr,
        batch, query_tokens, capacity, window, GROUP, HAS_WINDOW, BLOCK_G, UNIT_N, ITEM_COST_TILES,
    )  # fmt: skip
    last_item = last_sequence_item + item
    done_units = last_units + 1  # of the last item, up to the end of this chunk
    last = tl.maximum(done_units - ITEM_COST_TILES, 0).to(tl.int32)
    units_left = units - done_units
    begun = (last > 0) & (units_left > 0) & ((last_item > first_item) | (first == 0))
    stop_item = tl.where((last > 0) | (units_left == 0), last_item + 1, last_item)
    idle = first_unit > last_unit
    num_partials = tl.where(begun & (idle == 0), 1 + tl.cdiv(units_left, chunk), 0).to(tl.int32)
    return (
        first_item, first, tl.where(idle, first_item, stop_item), last_item, last, num_partials,
        first_sequence, first_sequence_item, last_sequence, last_sequence_item,
    )  # fmt: skip
