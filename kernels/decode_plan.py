"""The launch plan of a `decode_attention` call: shapes, tiling, grid and workspace. Touches no device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .decode_tiling import (
    MAX_COMPILED_QUERY_TOKENS,
    DecodeTiling,
    HeadBlocks,
    choose_decode_tiling,
    head_blocks,
    most_row_blocks,
)

if TYPE_CHECKING:
    from .gpu_limits import GpuLimits

_PACKED_ROWS = 32
"""Packed queries of more tokens than sequences are tiled for at least so many rows."""

_MANY_QUERY_TOKENS = 128
"""Query tokens per sequence that fill the rows of the largest tile."""


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """Shapes, tiling, grid and workspace of one `decode_attention` call.

    Attributes:
        tiling: tiling of the split-KV kernel.
        programs: CTAs of the split-KV kernel.
        slots: split-KV partials that it may leave in the workspace.
        slot_rows: rows of each partial.
        v_head_dim: elements of a value.
        query_tokens: query tokens per sequence, which the kernel is compiled for; 0 for ragged queries, and
            for more of them, whose number is an argument.
        most_query_tokens: query tokens that a sequence has room for; all of them where they are packed.
        unit_tiles: KV tiles that the schedule of ragged queries assigns together.
        group: query heads of a GQA group.
        page_size: tokens of a page; 0 for a contiguous cache.
        capacity: tokens that the cache of one sequence can hold.
        latent: whether the values are the first elements of the keys, in the same memory.
        blocks: blocks that keys and values are divided into.
        lacks_e4m3: whether the GPU has no instructions for float8 e4m3: the kernel converts to and from bits.
        cache_e4m3_bits: whether the caches are float8 e4m3 that is decoded from its bits.
    """

    tiling: DecodeTiling
    programs: int
    slots: int
    slot_rows: int
    v_head_dim: int
    query_tokens: int
    most_query_tokens: int
    unit_tiles: int
    group: int
    page_size: int
    capacity: int
    latent: bool
    blocks: HeadBlocks
    lacks_e4m3: bool
    cache_e4m3_bits: bool

    @property
    def workspace_bytes(self) -> int:
        """Float32 partials and their log-sum-exps, and two int32 per CTA, three with ragged queries."""
        if not self.slots:
            return 0
        count_fields = 2 if self.query_tokens else 3
        return 4 * (self.slots * self.slot_rows * (self.v_head_dim + 1) + count_fields * self.programs)

    def workspace_views(self, workspace: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of a workspace: partials, their log-sum-exps, and partial counts.

        Partials are [slots, slot_rows, v_head_dim]. Partial counts are [programs, 2] int32: the last item of
        each CTA, and its number of partials if the CTA begins it and does not finish it, else 0. With ragged
        queries they are [programs, 3]: the last item counted within its sequence, the same, the sequence.
        """
        words = workspace.view(-1).view(torch.uint8)[: self.workspace_bytes].view(torch.float32)
        rows = self.slots * self.slot_rows
        lses = rows * self.v_head_dim
        return words[:lses], words[lses : lses + rows], words[lses + rows :].view(torch.int32)


def is_latent(k_cache: torch.Tensor, v_cache: torch.Tensor) -> bool:
    """Whether `v_cache` is a view of the first elements of each key of `k_cache`, as in MLA."""
    return (
        k_cache.data_ptr() == v_cache.data_ptr()
        and v_cache.shape[-1] <= k_cache.shape[-1]
        and k_cache.stride() == v_cache.stride()
        and k_cache.dtype == v_cache.dtype
    )


def takes_split_scale(k_cache: torch.Tensor, v_cache: torch.Tensor) -> bool:
    """Whether a cache may have two scales: a latent of one head, whose values are the main part of a key."""
    head_dim, v_head_dim = k_cache.shape[-1], v_cache.shape[-1]
    return (
        k_cache.shape[2] == 1
        and v_head_dim < head_dim
        and is_latent(k_cache, v_cache)
        and head_blocks(head_dim, v_head_dim, latent=True).d == v_head_dim
    )


def plan_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    num_splits: int | None,
    tiling: DecodeTiling | None,
    limits: GpuLimits,
    cu_seqlens: torch.Tensor | None = None,
    q_lens: torch.Tensor | None = None,
) -> DecodePlan:
    """The plan of a call with checked arguments; `choose_decode_tiling` fills in a missing tiling."""
    batch, packed_tokens = q.shape[0], None
    query_tokens = most_query_tokens = q.shape[1] if q.dim() == 4 else 1
    if cu_seqlens is not None:
        batch, packed_tokens = cu_seqlens.shape[0] - 1, q.shape[0]
        most_query_tokens = packed_tokens
        query_tokens = mean_query_tokens(packed_tokens, batch, q.shape[-2] // k_cache.shape[2], num_splits)
    kv_heads, head_dim, v_head_dim = k_cache.shape[2], q.shape[-1], v_cache.shape[-1]
    page_size = 0 if block_table is None else k_cache.shape[1]
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    latent = is_latent(k_cache, v_cache)
    if tiling is None:
        tiling = choose_decode_tiling(
            batch=batch,
            query_tokens=query_tokens,
            ragged=q_lens is not None or cu_seqlens is not None,
            packed_tokens=packed_tokens,
            q_heads=q.shape[-2],
            kv_heads=kv_heads,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            capacity=capacity,
            page_size=page_size,
            element_bytes=k_cache.element_size(),
            query_element_bytes=q.element_size(),
            latent=latent,
            limits=limits,
        )
    if num_splits is not None:
        tiling = dataclasses.replace(tiling, num_splits=num_splits)
    group = q.shape[-2] // kv_heads
    rows = group * query_tokens
    items = kv_heads * most_row_blocks(batch, rows, packed_tokens, group, tiling.block_g)
    ragged = (
        cu_seqlens is not None
        or q_lens is not None
        or query_tokens > MAX_COMPILED_QUERY_TOKENS
        or (query_tokens > 1 and rows > tiling.block_g)
    )
    programs = items * tiling.num_splits or tiling.programs
    lacks_e4m3 = limits.compute_capability < 89
    return DecodePlan(
        tiling=tiling,
        programs=programs,
        # A CTA with a balanced chunk may leave two partials: of an item it continues and of one it begins.
        slots=0 if programs == 1 or tiling.num_splits == 1 else programs * (1 if tiling.num_splits else 2),
        slot_rows=tiling.block_g if ragged else min(rows, tiling.block_g),
        v_head_dim=v_head_dim,
        query_tokens=0 if ragged else query_tokens,
        most_query_tokens=most_query_tokens,
        # A unit of as many tokens times the group is a multiple of the rows of a block.
        unit_tiles=tiling.block_g // math.gcd(tiling.block_g, group * tiling.block_n) if ragged else 1,
        group=group,
        page_size=page_size,
        capacity=capacity,
        latent=latent,
        blocks=head_blocks(head_dim, v_head_dim, latent=latent),
        lacks_e4m3=lacks_e4m3,
        cache_e4m3_bits=lacks_e4m3 and k_cache.dtype == torch.float8_e4m3fn,
    )


def mean_query_tokens(packed_tokens: int, batch: int, group: int, num_splits: int | None) -> int:
    """Query tokens per sequence that packed queries are tiled for.

    How they are shared among the sequences is known on the device alone. If there are more tokens than
    sequences, one may have nearly all of them: tiles then have some rows more than the mean sequence needs.
    With `num_splits` results must not depend on the batch, and so neither may the tiles.
    """
    if num_splits is not None:
        return _MANY_QUERY_TOKENS
    mean = max(1, math.ceil(packed_tokens / batch))
    return mean if mean == 1 else max(mean, _PACKED_ROWS // group)
