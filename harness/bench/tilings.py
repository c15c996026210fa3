"""What tuning needs to know of each kernel, from shapes alone: what a tiling depends on, and which to try."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.cases import DecodeAttention, PrefillMatmul
from ..core.work import ELEMENT_BYTES

if TYPE_CHECKING:
    from .providers import DecodeTiling, GpuLimits, MatmulTiling

Key = dict[str, int | str]

MOST_PROGRAMS_PER_SM = 4
LEAST_BLOCK_K = 32
"""Elements of a step along K: fewer are less than a memory sector of 8-bit elements."""

LEAST_BLOCK_N = 16
"""Tokens of a step: no matrix instruction takes fewer."""


def decode_attention_key(case: DecodeAttention) -> Key:
    """The facts of a case that the choice of its tiling may depend on; lengths stay on the device."""
    return {
        "batch": case.batch,
        "capacity": case.capacity,
        "q_heads": case.q_heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "page_size": 0,  # cases have contiguous caches
        "dtype": case.dtype,
    }


def decode_attention_candidates(
    case: DecodeAttention, default: "DecodeTiling", limits: "GpuLimits"
) -> Sequence["DecodeTiling"]:
    """The default tiling, and others in the order of how few fields differ from it, then of their values.

    Tried are half and twice the tokens of a step, 4 or 8 warps, a stage more or less, and other numbers of
    programs, each one wave of the GPU. What surely does not fit its shared memory is left out; `num_splits`,
    on which it depends whether a sequence's result depends on the rest of the batch, is never changed.
    """
    found = {
        tiling
        for block_n, num_warps, num_stages in itertools.product(
            (default.block_n // 2, default.block_n, 2 * default.block_n),
            (4, 8, default.num_warps),
            (default.num_stages - 1, default.num_stages, default.num_stages + 1),
        )
        if block_n >= LEAST_BLOCK_N and num_stages >= 1
        for programs, min_tiles in _shares(case, default, limits, block_n)
        if _may_fit(case, limits, block_n=block_n, num_stages=num_stages, programs=programs)
        for tiling in _variant(
            default,
            limits,
            block_n=block_n,
            num_warps=num_warps,
            num_stages=num_stages,
            programs=programs,
            min_tiles=min_tiles,
        )
    }
    return (default, *sorted(found - {default}, key=lambda tiling: _distance(tiling, default)))


def _shares(
    case: DecodeAttention, default: "DecodeTiling", limits: "GpuLimits", block_n: int
) -> set[tuple[int, int]]:
    """Numbers of programs, each with a least share that so many can have; the default's own among them."""
    if default.num_splits:
        return {(default.programs, default.min_tiles)}
    blocks = math.ceil(case.q_heads // case.kv_heads / default.block_g)
    tiles = case.batch * case.kv_heads * blocks * math.ceil(case.capacity / block_n)
    waves = (limits.sm_count * per_sm for per_sm in range(1, MOST_PROGRAMS_PER_SM + 1))
    asked = {default.programs // 2, 2 * default.programs, *waves}
    numbers = {max(1, min(programs, tiles)) for programs in asked}
    return {
        (default.programs, default.min_tiles),
        *(
            (programs, max(1, min(default.min_tiles, tiles // programs)))
            for programs in numbers - {default.programs}
        ),
    }


def _may_fit(
    case: DecodeAttention, limits: "GpuLimits", *, block_n: int, num_stages: int, programs: int
) -> bool:
    """Whether the steps on their way, the least that a program keeps in shared memory, leave room for all."""
    step_bytes = 2 * block_n * case.head_dim * ELEMENT_BYTES[case.dtype]
    least_bytes = (num_stages - 1) * step_bytes
    per_sm = math.ceil(programs / limits.sm_count)
    return least_bytes <= limits.shared_bytes_per_block and per_sm * least_bytes <= limits.shared_bytes_per_sm


def prefill_matmul_key(case: PrefillMatmul) -> Key:
    """The facts of a case that the choice of its tiling may depend on."""
    return {
        "rows": case.rows,
        "in_features": case.in_features,
        "out_features": case.out_features,
        "dtype": case.dtype,
    }


def prefill_matmul_candidates(
    case: PrefillMatmul, default: "MatmulTiling", limits: "GpuLimits", chosen_from: Sequence["MatmulTiling"]
) -> Sequence["MatmulTiling"]:
    """The default tiling, and others in the order of how few fields differ from it, then of their values.

    Tried are those that the chooser chooses from, in each variant that GPU and operands allow; and of the
    default half and twice the elements of a step, 4 or 8 warps, a stage more or less, half and twice the
    row blocks of a group. What surely does not fit shared memory is left out.
    """
    near = {
        dataclasses.replace(default, block_k=block_k, num_warps=warps, num_stages=stages, group_m=group_m)
        for block_k, warps, stages, group_m in itertools.product(
            (default.block_k // 2, default.block_k, 2 * default.block_k),
            (4, 8, default.num_warps),
            (default.num_stages - 1, default.num_stages, default.num_stages + 1),
            {max(1, default.group_m // 2), default.group_m, 2 * default.group_m},
        )
        if block_k >= LEAST_BLOCK_K and stages >= 2
    }
    element_bytes = ELEMENT_BYTES[case.dtype]
    found = {
        tiling
        for tiling in {*near, *chosen_from}
        if (tiling.num_stages - 1) * (tiling.block_m + tiling.block_n) * tiling.block_k * element_bytes
        <= limits.shared_bytes_per_block
    }
    return (default, *sorted(found - {default}, key=lambda tiling: _distance(tiling, default)))


def _variant(default: "DecodeTiling", limits: "GpuLimits", **changes: int) -> Iterator["DecodeTiling"]:
    """The default with these changes, where a tiling may have them and there are registers for one wave."""
    with contextlib.suppress(ValueError):
        tiling = dataclasses.replace(default, **changes)
        changed = tiling if default.num_splits else tiling.in_one_wave(limits.sm_count)
        yield tiling if tiling == default else changed


def _distance(tiling: Any, default: Any) -> tuple[int, tuple[tuple[bool, int, str], ...]]:
    """How many fields differ, then their values: numbers in their order, words in theirs."""
    values = dataclasses.astuple(tiling)
    ordered = tuple(
        (isinstance(each, int), each if isinstance(each, int) else 0, str(each)) for each in values
    )
    return sum(a != b for a, b in zip(values, dataclasses.astuple(default), strict=True)), ordered
