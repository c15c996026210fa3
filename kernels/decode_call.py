"""One call of decode attention: its shapes, how it is cut, and what memory that takes. Touches no device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from .tiling import DecodeTiling, GpuLimits, choose_decode_tiling


@dataclass(frozen=True, kw_only=True)
class DecodeCall:
    """The shapes of a call, and how it is cut.

    Attributes:
        tiling: of the split kernel.
        programs: of the split kernel.
        slots: partial results that it may leave.
        slot_rows: rows of each.
        v_head_dim: elements of a value.
        query_tokens: of a sequence.
        group: query heads of a key-value head.
        page_size: tokens; 0 for a contiguous cache.
        capacity: tokens of a sequence.
        e4m3_bits: whether the cache's elements are decoded from their bits.
    """

    tiling: DecodeTiling
    programs: int
    slots: int
    slot_rows: int
    v_head_dim: int
    query_tokens: int
    group: int
    page_size: int
    capacity: int
    e4m3_bits: bool

    @property
    def workspace_bytes(self) -> int:
        """Float32 rows of partial results and their log-sum-exps, and two int32 a program."""
        if not self.slots:
            return 0
        return 4 * (self.slots * self.slot_rows * (self.v_head_dim + 1) + 2 * self.programs)

    def workspace_parts(self, workspace: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Partial results [slots, slot_rows, v_head_dim], their log-sum-exps, and [programs, 2] int32."""
        words = workspace.view(-1).view(torch.uint8)[: self.workspace_bytes].view(torch.float32)
        rows = self.slots * self.slot_rows
        lses = rows * self.v_head_dim
        return words[:lses], words[lses : lses + rows], words[lses + rows :].view(torch.int32)


def decode_call(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    num_splits: int | None,
    tiling: DecodeTiling | None,
    limits: GpuLimits,
) -> DecodeCall:
    """Cuts a call whose arguments have been checked, as the chooser says where `tiling` is none."""
    query_tokens = q.shape[1] if q.dim() == 4 else 1
    kv_heads, head_dim, v_head_dim = k_cache.shape[2], q.shape[-1], v_cache.shape[-1]
    page_size = 0 if block_table is None else k_cache.shape[1]
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    if tiling is None:
        tiling = choose_decode_tiling(
            batch=q.shape[0],
            query_tokens=query_tokens,
            q_heads=q.shape[-2],
            kv_heads=kv_heads,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            capacity=capacity,
            page_size=page_size,
            element_bytes=k_cache.element_size(),
            query_element_bytes=q.element_size(),
            limits=limits,
        )
    if num_splits is not None:
        tiling = dataclasses.replace(tiling, num_splits=num_splits)
    rows = q.shape[-2] // kv_heads * query_tokens
    items = q.shape[0] * kv_heads * math.ceil(rows / tiling.block_g)
    programs = items * tiling.num_splits or tiling.programs
    return DecodeCall(
        tiling=tiling,
        programs=programs,
        # A program of the balanced schedule may leave two: of what it went on with, and of what it began.
        slots=0 if programs == 1 or tiling.num_splits == 1 else programs * (1 if tiling.num_splits else 2),
        slot_rows=min(rows, tiling.block_g),
        v_head_dim=v_head_dim,
        query_tokens=query_tokens,
        group=q.shape[-2] // kv_heads,
        page_size=page_size,
        capacity=capacity,
        e4m3_bits=k_cache.dtype == torch.float8_e4m3fn and limits.compute_capability < 89,
    )
