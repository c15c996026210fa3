"""How each kernel cuts its work, and the pure functions that choose it from shapes and a GPU."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class GpuLimits:
    """What the choosers need to know of a GPU.

    Attributes:
        compute_capability: major and minor in one number: 90 for 9.0.
        sm_count: streaming multiprocessors.
        shared_bytes_per_block: most shared memory that one program may take, in bytes.
        shared_bytes_per_sm: shared memory of one multiprocessor, in bytes.
    """

    compute_capability: int
    sm_count: int
    shared_bytes_per_block: int
    shared_bytes_per_sm: int


# Interpreted kernels are cut as for this GPU. CUDA C++ programming guide, compute capability 9.0.
H100_LIMITS = GpuLimits(
    compute_capability=90, sm_count=132, shared_bytes_per_block=227 * 1024, shared_bytes_per_sm=228 * 1024
)


@dataclass(frozen=True, kw_only=True)
class MatmulTiling:
    """A program computes [block_m, block_n] in steps of block_k over one of num_splits shares of K."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_splits: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        _require_powers_of_two(self, "block_m", "block_n", "block_k", "num_warps")
        _require_positive(self, "group_m", "num_splits", "num_stages")


@dataclass(frozen=True, kw_only=True)
class DecodeTiling:
    """A program takes block_g query heads of a group over one of num_splits shares, block_n tokens a step."""

    block_g: int
    block_n: int
    num_splits: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        _require_powers_of_two(self, "block_g", "block_n", "num_warps")
        _require_positive(self, "num_splits", "num_stages")


def gpu_limits(device: torch.device) -> GpuLimits:
    """Limits of a CUDA device; H100's for a CPU tensor, whose kernels run interpreted."""
    if device.type != "cuda":
        return H100_LIMITS
    return _cuda_limits(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _cuda_limits(index: int) -> GpuLimits:
    properties = torch.cuda.get_device_properties(index)
    return GpuLimits(
        compute_capability=10 * properties.major + properties.minor,
        sm_count=properties.multi_processor_count,
        shared_bytes_per_block=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # missing from torch's stub
        shared_bytes_per_sm=properties.shared_memory_per_multiprocessor,
    )


@functools.cache
def choose_matmul_tiling(
    *,
    rows: int,
    out_features: int,
    in_features: int,
    element_bytes: int,
    aligned: bool,
    limits: GpuLimits,
) -> MatmulTiling:
    """The tiling of [rows, in_features] times [out_features, in_features] transposed.

    Args:
        rows: M, the tokens.
        out_features: N.
        in_features: K.
        element_bytes: size of an element of x and weight.
        aligned: whether both operands can be loaded 16 bytes at a time.
        limits: the GPU to run on.

    Returns:
        A tiling that fits the GPU's shared memory and keeps its accumulator in registers.
    """
    block_m, block_n, block_k, stages, warps = _matmul_blocks(
        rows, out_features, element_bytes, aligned, limits
    )
    tiles = math.ceil(rows / block_m) * math.ceil(out_features / block_n)
    k_tiles = math.ceil(in_features / block_k)
    # Idle multiprocessors take shares of K, of at least four steps: fewer only fill the pipeline.
    splits = max(1, min(limits.sm_count // tiles, k_tiles // 4))
    return MatmulTiling(
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        group_m=8,
        num_splits=splits,
        num_warps=warps,
        num_stages=stages,
    )


def _matmul_blocks(
    rows: int, out_features: int, element_bytes: int, aligned: bool, limits: GpuLimits
) -> tuple[int, int, int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, stages, warps."""
    if element_bytes == 4:
        # IEEE float32 products run on the plain units, out of registers: small tiles, short steps.
        if rows <= 16:
            return 16, 64, 32, 3, 4
        # Each element loaded by itself needs an address of its own.
        return (64 if aligned else 32), 64, 16, 3, 8
    if not aligned:
        # Loads of one element each pass through registers: a large tile would not fit there.
        return min(64, max(16, _next_power_of_two(rows))), 128, 32, 2, 8
    if rows <= 64:
        # The weights are the bill: small tiles, many to an SM, each with three steps on their way.
        return max(16, _next_power_of_two(rows)), 64, 64, 4, 8 if rows > 32 else 4
    wide_tiles = math.ceil(rows / 128) * math.ceil(out_features / 256)
    if limits.compute_capability // 10 in {9, 10} and wide_tiles >= limits.sm_count:
        # The largest tile asks for the fewest bytes, where every SM gets one. Elsewhere operands
        # pass through the registers that its accumulator fills.
        return 128, 256, 64, 3, 8
    # 96 KB: fits every GPU from sm_80 up.
    return 128, 128, 64, 3, 8


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
) -> DecodeTiling:
    """The tiling of one decode step; from shapes and capacity, for the lengths stay on the device.

    Args:
        batch: sequences.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a head.
        capacity: most tokens that a sequence's cache holds.
        page_size: tokens of a page; 0 for a contiguous cache.
        element_bytes: size of an element of the cache.
        limits: the GPU to run on.

    Returns:
        A tiling that fits the GPU's shared memory and keeps its accumulator in registers.
    """
    group = q_heads // kv_heads
    block_d = _next_power_of_two(head_dim)
    block_g = _decode_block_g(group, block_d, element_bytes)
    token_bytes = 2 * block_d * element_bytes  # of keys and values
    # Two programs to an SM, so that one loads while the other computes; no dot takes fewer than 16.
    tile_bytes = 32 * 1024 if limits.shared_bytes_per_sm >= 160 * 1024 else 16 * 1024
    # More than 4096 scores beside the accumulator would spill.
    block_n = max(16, min(128, tile_bytes // token_bytes, 4096 // block_g))
    shared = functools.partial(
        _decode_shared_bytes,
        block_g=block_g,
        block_d=block_d,
        block_n=block_n,
        element_bytes=element_bytes,
        limits=limits,
    )
    depth = 3 if shared(depth=3) <= limits.shared_bytes_per_block else 2
    per_sm = max(1, limits.shared_bytes_per_sm // shared(depth=depth))
    programs = batch * kv_heads * math.ceil(group / block_g)
    return DecodeTiling(
        block_g=block_g,
        block_n=block_n,
        num_splits=_decode_splits(programs, math.ceil(capacity / block_n), limits.sm_count * per_sm),
        # Scores and accumulator of more than 64 elements a thread would spill.
        num_warps=8 if block_g * (block_d + block_n) > 8192 else 4,
        # The load of the page ids, ahead of the keys that they lead to, takes two stages of its own.
        num_stages=depth if page_size == 0 else depth + 2,
    )


def _decode_block_g(group: int, block_d: int, element_bytes: int) -> int:
    """Query heads that a program takes; those beyond find the keys and values in the L2 cache."""
    if element_bytes == 4:
        # IEEE float32 products run on the plain units: no rows to pad to, and few registers to spare.
        return min(8, _next_power_of_two(group))
    # A matrix instruction has 16 rows; an accumulator of over 8192 elements spills.
    return min(max(16, _next_power_of_two(group)), 8192 // block_d)


def _decode_shared_bytes(
    *, block_g: int, block_d: int, block_n: int, depth: int, element_bytes: int, limits: GpuLimits
) -> int:
    """Shared memory of a split program, as Triton 3.6 to 3.9 allot it, rounded up."""
    # Matrix instructions of 64 rows read tiles where they lie; others copy one to registers first.
    in_place = block_g >= 64 and limits.compute_capability // 10 in {9, 10}
    tiles = (depth if in_place else depth - 1) * 2 * block_n * block_d
    queries_and_probabilities = block_g * (block_d + block_n)
    return (tiles + queries_and_probabilities) * element_bytes + 2048


def _decode_splits(programs: int, tiles: int, slots: int) -> int:
    """How many shares each context is cut into, where `slots` programs run at one time."""
    if programs >= 0.8 * slots:
        # The heads alone fill the GPU; a split would only add the merge.
        return 1
    # A share of fewer than four tiles costs more to merge than it saves.
    most = max(1, min(tiles // 4, math.ceil(4 * slots / programs)))
    waves = [programs * splits / slots for splits in range(1, most + 1)]
    efficiency = [wave / math.ceil(wave) for wave in waves]
    # The fewest shares whose last wave is nearly as full as the best.
    return next(at + 1 for at, value in enumerate(efficiency) if value >= 0.85 * max(efficiency))


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _require_powers_of_two(tiling: object, *names: str) -> None:
    for name in names:
        value = getattr(tiling, name)
        if value < 1 or value & (value - 1):
            raise ValueError(f"{name} is {value}; it must be a power of two")


def _require_positive(tiling: object, *names: str) -> None:
    for name in names:
        value = getattr(tiling, name)
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
