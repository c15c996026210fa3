"""Tile sizes and CTA count of `prefill_attention`, and the function that chooses them from shapes and GPU."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

from .gpu_limits import (
    GpuLimits,
    next_power_of_two,
    require_max_registers,
    require_positive,
    require_powers_of_two,
)

PrefillAttentionVariant = Literal["pointers", "descriptors", "warp_specialized"]
VARIANTS: tuple[PrefillAttentionVariant, ...] = ("pointers", "descriptors", "warp_specialized")

TMA_FROM_CAPABILITY = 90
_LEAST_BLOCK = 16
"""Least dimension of a dot, and least rows of an mma instruction of the tensor cores."""


@dataclass(frozen=True, kw_only=True)
class PrefillAttentionTiling:
    """Tile sizes and CTA count of one prefill attention.

    Attributes:
        block_m: query tokens of a row block.
        block_n: KV tokens per tile.
        programs: CTAs of the persistent kernel.
        num_warps: warps per CTA.
        num_stages: stages of the software pipeline.
        variant: "pointers" loads keys and values through pointers (cp.async); "descriptors" with the TMA of
            sm_90 and newer; "warp_specialized" also gives the loads a warp of their own, on sm_100.
        max_registers: registers per thread at most; None leaves it to the compiler.
    """

    block_m: int
    block_n: int
    programs: int
    num_warps: int
    num_stages: int
    variant: PrefillAttentionVariant = "pointers"
    max_registers: int | None = None

    def __post_init__(self) -> None:
        require_powers_of_two(self, "block_m", "block_n", "num_warps")
        require_positive(self, "programs", "num_stages")
        require_max_registers(self.max_registers)
        for name in ("block_m", "block_n"):
            if getattr(self, name) < _LEAST_BLOCK:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {_LEAST_BLOCK}")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; it must be one of {', '.join(VARIANTS)}")


def head_dim_blocks(head_dim: int, least: int = _LEAST_BLOCK) -> tuple[int, int]:
    """Columns of the two tiles that hold head_dim elements, each a power of two; the second may be 0.

    192 are 128 and 64. One tile serves where two would not be smaller. Both have at least `least` columns.
    """
    whole = max(least, next_power_of_two(head_dim))
    first = whole // 2
    rest = max(least, next_power_of_two(head_dim - first))
    return (whole, 0) if first < least or first + rest >= whole else (first, rest)


@functools.cache
def choose_prefill_attention_tiling(
    *,
    batch: int,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    element_bytes: int,
    limits: GpuLimits,
    v_head_dim: int | None = None,
) -> PrefillAttentionTiling:
    """The tiling of one prefill attention, from shapes: lengths stay on the device.

    Args:
        batch: sequences.
        tokens: most query tokens of a sequence, or their mean where sequences are packed.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a query and a key.
        element_bytes: bytes of an element of q, k and v.
        limits: the GPU to run on.
        v_head_dim: elements of a value; None means `head_dim`.

    Returns:
        A tiling that fits the GPU's shared memory and registers.
    """
    del kv_heads  # heads of a group are items of their own, which share keys and values in L2
    width = max(sum(head_dim_blocks(head_dim)), next_power_of_two(v_head_dim or head_dim))
    block_m, block_n, warps, stages, per_sm = _tiles(width, element_bytes, limits)
    rows = max(_LEAST_BLOCK, next_power_of_two(tokens))
    if rows < block_m:
        # Fewer rows: as many warps as have 16 of them, the height of an mma instruction.
        warps = max(4, warps * rows // block_m) if element_bytes < 4 else warps
        block_m = rows
    items = batch * q_heads * math.ceil(tokens / block_m)
    # From the TMA, float32 tiles spill (the FMA units take them from registers), and wide ones on sm_120.
    tma = limits.compute_capability >= TMA_FROM_CAPABILITY and element_bytes < 4
    tma = tma and (width <= 192 or not _has_small_shared_memory(limits))
    return PrefillAttentionTiling(
        block_m=block_m,
        block_n=block_n,
        programs=min(items, limits.sm_count * per_sm),
        num_warps=warps,
        num_stages=stages,
        variant="descriptors" if tma else "pointers",
    )


def _tiles(width: int, element_bytes: int, limits: GpuLimits) -> tuple[int, int, int, int, int]:
    """block_m, block_n, warps, stages and CTAs per SM, by the larger width of a key and a value.

    128 rows share each key and value tile, so that L2 need not deliver more. Accumulator, scores and
    probabilities of a row block must fit in registers, and the tiles in shared memory.
    """
    small_shared = _has_small_shared_memory(limits)
    if element_bytes == 4:  # FMA units: both operands pass through registers
        return (32, 32, 8, 2, 1) if width <= 128 else (16, 16, 8, 2, 1)
    family = limits.compute_capability // 10
    if width > 128:
        small = (64, 32, 8, 2, 1) if width > 192 else (128, 32, 8, 2, 1)
        return small if small_shared else (128, 64, 8, 2, 1)
    if family == 10 or (family == 9 and width > 64):
        # On sm_100 fewer keys would make issue slots the limit. One tile is in flight at the tightest wait.
        return 128, 128, 8, 4 if element_bytes * width <= 128 else 3, 1
    if width > 64:
        return 128, 64, 8, 2 if small_shared else 3, 1
    if family == 8 and not small_shared:
        return 128, 128, 8, 2, 1  # two CTAs of four warps each would spill
    return 128, 64, 4, 2 if small_shared else 3, 2  # one CTA multiplies while the other exponentiates


def _has_small_shared_memory(limits: GpuLimits) -> bool:
    return limits.shared_bytes_per_block < 160 * 1024
