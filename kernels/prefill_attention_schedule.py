"""Order of the row blocks of prefill attention: those with the most keys first, so that no CTA ends late.

A work **item** is a row block of a sequence (BLOCK_M query tokens) and a query head. The persistent kernel
assigns items to its CTAs in rounds, back and forth (the first CTA of a round is the last of the next), and
items come in descending order of the keys that they read. Both depend on shapes and lengths alone: results
have the same bits every run.

If all sequences have the same lengths, an item's row block follows from its index. Otherwise one small kernel
ranks the row blocks by their lengths, which are on the device, and writes their order to the workspace.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .interpreter import patch_interpreter

patch_interpreter()

ORDER_BLOCKS = 64
"""Row blocks that a CTA of the order kernel ranks."""

ORDER_SEQUENCES = 64
"""Sequences that it compares them with at a time."""

ORDER_HEADER = 2
"""int32 before the order: the number of row blocks, and one unused."""


@triton.jit  # type: ignore[untyped-decorator]
def new_tokens(
    sequence: tl.tensor,
    live: tl.tensor,
    cu_seqlens_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    tokens: tl.tensor,
) -> tl.tuple:
    """First row in q, k and v of a sequence, and its number of tokens; 0 where not live."""
    first = tl.zeros_like(sequence).to(tl.int32)
    length = first + tokens
    if cu_seqlens_ptr is not None:
        first = tl.load(cu_seqlens_ptr + sequence, mask=live, other=0)
        last = tl.load(cu_seqlens_ptr + sequence + 1, mask=live, other=0)
        first = tl.minimum(tl.maximum(first, 0), tokens).to(tl.int32)
        last = tl.minimum(tl.maximum(last, 0), tokens).to(tl.int32)
        length = tl.maximum(last - first, 0)
    elif lengths_ptr is not None:
        length = tl.load(lengths_ptr + sequence, mask=live, other=0)
        length = tl.minimum(tl.maximum(length, 0), tokens).to(tl.int32)
    return first, tl.where(live, length, 0)


@triton.jit  # type: ignore[untyped-decorator]
def cached_tokens(
    sequence: tl.tensor, live: tl.tensor, context_lens_ptr: tl.tensor, capacity: tl.tensor
) -> tl.tensor:
    """Tokens of a sequence's cached prefix."""
    context = tl.zeros_like(sequence).to(tl.int32)
    if context_lens_ptr is not None:
        context = tl.load(context_lens_ptr + sequence, mask=live, other=0)
        context = tl.minimum(tl.maximum(context, 0), capacity).to(tl.int32)
    return context


@triton.jit  # type: ignore[untyped-decorator]
def _row_blocks(
    length: tl.tensor, live: tl.tensor, tokens: tl.tensor, PACKED: tl.constexpr, BLOCK_M: tl.constexpr
) -> tl.tensor:
    """Row blocks of a sequence; those of a padded one include its dead tokens, whose output is 0."""
    rows = length if PACKED else tl.where(live, tokens, 0)
    return tl.cdiv(rows, BLOCK_M)


@triton.jit  # type: ignore[untyped-decorator]
def _blocks_above(
    keys: tl.tensor,
    length: tl.tensor,
    context: tl.tensor,
    most: tl.tensor,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tl.tensor:
    """How many row blocks of a sequence read more than `keys` keys."""
    blocks = tl.cdiv(length, BLOCK_M)
    first = tl.maximum(keys - context, 0) // BLOCK_M if CAUSAL else tl.zeros_like(keys)
    return tl.where(tl.minimum(context + length, most) > keys, tl.maximum(blocks - first, 0), 0)


@triton.jit  # type: ignore[untyped-decorator]
def order_kernel(
    cu_seqlens_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    order_ptr: tl.tensor,
    batch: tl.tensor,
    tokens: tl.tensor,
    capacity: tl.tensor,
    most: tl.tensor,
    CAUSAL: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ORDER_BLOCKS: tl.constexpr,
    ORDER_SEQUENCES: tl.constexpr,
    ORDER_HEADER: tl.constexpr,
) -> None:
    """Writes (sequence, row block) of all row blocks in descending order of keys, then of sequences.

    A row block's place is the number of row blocks before it, which each sequence's lengths give in closed
    form. `most` is the most keys that a row block reads under a sliding window.
    """
    sequence = tl.program_id(0)
    blocks = tl.program_id(1) * ORDER_BLOCKS + tl.arange(0, ORDER_BLOCKS)
    _first, length = new_tokens(sequence, sequence < batch, cu_seqlens_ptr, lengths_ptr, tokens)
    context = cached_tokens(sequence, sequence < batch, context_lens_ptr, capacity)
    own_blocks = _row_blocks(length, sequence < batch, tokens, PACKED, BLOCK_M)
    last = tl.minimum((blocks + 1) * BLOCK_M, length) if CAUSAL else length
    keys = tl.where(blocks * BLOCK_M < length, tl.minimum(context + last, most), 0)
    at_least = tl.where(keys > 0, _blocks_above(keys - 1, length, context, most, CAUSAL, BLOCK_M), own_blocks)
    live_blocks = tl.cdiv(length, BLOCK_M)
    # Of its own sequence: the blocks before it among those that read as many keys.
    place = tl.where(keys > 0, blocks - (live_blocks - at_least), blocks - live_blocks)
    total = tl.zeros((), tl.int32)
    for start in range(0, batch, ORDER_SEQUENCES):
        others = start + tl.arange(0, ORDER_SEQUENCES)
        live = others < batch
        _firsts, lengths = new_tokens(others, live, cu_seqlens_ptr, lengths_ptr, tokens)
        contexts = cached_tokens(others, live, context_lens_ptr, capacity)
        their_blocks = _row_blocks(lengths, live, tokens, PACKED, BLOCK_M)
        more = _blocks_above(
            keys[:, None], lengths[None, :], contexts[None, :], most, CAUSAL, BLOCK_M
        )  # [ORDER_BLOCKS, ORDER_SEQUENCES]
        as_many = _blocks_above(keys[:, None] - 1, lengths[None, :], contexts[None, :], most, CAUSAL, BLOCK_M)
        as_many = tl.where(keys[:, None] > 0, as_many, their_blocks[None, :])
        place += tl.sum(tl.where((others < sequence)[None, :], as_many, more), 1)
        total += tl.sum(their_blocks, 0)
    entry = order_ptr + ORDER_HEADER + 2 * place
    tl.store(entry, sequence, mask=blocks < own_blocks)
    tl.store(entry + 1, blocks, mask=blocks < own_blocks)
    if (sequence == 0) & (tl.program_id(1) == 0):
        tl.store(order_ptr, total)
