"""What choosers of tilings know of a GPU; how decode attention cuts its work, and who chooses it."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Self

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


PART_TILES = 1
"""What decode attention pays to begin a sequence and head, in tiles: its queries, an empty pipeline."""

EDGE_TOKENS = 16
"""Tokens of the tiles that decode attention takes at the ends of a context: the fewest of a product."""

MERGE_PROGRAMS = 16
"""At most so many programs merge the rows of one item of decode attention."""

MOST_SPLITS = 1 << 16
"""That decode attention cuts a sequence into."""

_MIN_SHARE_TILES = 5
_REGISTERS_PER_SM = 65536  # CUDA C++ programming guide, compute capabilities 8.0 to 12.0
_ONE_PASS_ELEMENTS = 16384  # of an accumulator; more would spill


@dataclass(frozen=True, kw_only=True)
class DecodeTiling:
    """How a decode attention is cut.

    Attributes:
        block_g: rows of a program: query tokens and heads that share a key-value head.
        block_n: tokens of a step.
        num_splits: shares that each sequence is cut into by its own length; 0 for `programs` equal shares of
            all the tiles of the batch.
        programs: so many shares, where `num_splits` is 0.
        min_tiles: no share of them is smaller.
        num_warps: of a program.
        num_stages: of its pipeline.
        max_registers: of a thread; as many as the compiler likes when none.
    """

    block_g: int
    block_n: int
    num_splits: int = 0
    programs: int = 1
    min_tiles: int = 1
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __post_init__(self) -> None:
        require_powers_of_two(self, "block_g", "block_n", "num_warps")
        require_positive(self, "programs", "min_tiles", "num_stages")
        if self.block_n < EDGE_TOKENS:
            raise ValueError(f"block_n is {self.block_n}; it must be at least {EDGE_TOKENS}")
        if self.max_registers is not None and not 32 <= self.max_registers <= 255:
            raise ValueError(f"max_registers is {self.max_registers}; it must be from 32 to 255, or None")
        if type(self.num_splits) is not int or not 0 <= self.num_splits <= MOST_SPLITS:
            raise ValueError(f"num_splits is {self.num_splits!r}; it must be an int from 0 to {MOST_SPLITS}")

    def in_one_wave(self, sm_count: int) -> Self:
        """The same, with no more registers a thread than let all programs run at one time on so many SMs.

        Raises:
            ValueError: there are not enough.
        """
        registers = registers_for(self.num_warps, math.ceil(self.programs / sm_count))
        return dataclasses.replace(self, max_registers=registers)


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
    query_tokens: int = 1,
    v_head_dim: int | None = None,
    query_element_bytes: int | None = None,
) -> DecodeTiling:
    """The tiling of one decode step; from shapes and capacity, for the lengths stay on the device.

    One wave of programs takes equal shares of all live tiles. Only `programs` depends on batch and capacity.

    Args:
        batch: sequences.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a query and a key.
        capacity: most tokens that a sequence's cache holds.
        page_size: tokens of a page; 0 for a contiguous cache.
        element_bytes: size of an element of the cache.
        limits: the GPU to run on.
        query_tokens: of a sequence.
        v_head_dim: elements of a value; `head_dim` when none.
        query_element_bytes: size of an element of the queries; of the cache's, but at least 2, when none.

    Returns:
        A tiling that fits the GPU's shared memory and keeps its accumulator in registers.
    """
    v_head_dim = v_head_dim or head_dim
    rows = q_heads // kv_heads * query_tokens
    block_d, block_v = _next_power_of_two(head_dim), _next_power_of_two(v_head_dim)
    multiplied_bytes = max(2, element_bytes, query_element_bytes or 0)
    block_g = _decode_block_g(rows, max(head_dim, v_head_dim), multiplied_bytes)
    # Two programs to an SM or more, so that one loads while the other computes. Elements of 8 bits become
    # 16 in registers, and those of 32 take two: both leave room for half as many.
    tile_bytes = 32 * 1024 if limits.shared_bytes_per_sm >= 160 * 1024 else 16 * 1024
    tile_bytes //= 1 if element_bytes == multiplied_bytes == 2 else 2
    token_bytes = (block_d + block_v) * (element_bytes if multiplied_bytes == 2 else 4)
    tokens = min(128, tile_bytes // token_bytes, max(32, 8192 // block_g))
    block_n = _power_of_two_within(max(EDGE_TOKENS, tokens))
    shared = functools.partial(
        _decode_shared_bytes,
        block_d=block_d,
        block_v=block_v,
        element_bytes=element_bytes,
        multiplied_bytes=multiplied_bytes,
        limits=limits,
    )
    # Where so many rows do not fit, shallower pipelines, then smaller tiles, then fewer rows do.
    block_g, block_n, depth = next(
        (fewer_rows, fewer_tokens, depth)
        for fewer_rows in _halved(block_g, 1)
        for fewer_tokens in _halved(block_n, EDGE_TOKENS)
        for depth in range(3 if element_bytes == 2 else 4, 1, -1)  # of 32 bits or 8, tiles are half as large
        if shared(block_g=fewer_rows, block_n=fewer_tokens, depth=depth) <= limits.shared_bytes_per_block
    )
    warps = _decode_warps(block_g, max(block_d, block_v), block_n, multiplied_bytes)
    by_registers = _decode_programs_by_registers(
        block_g, max(block_d, block_v), block_n, warps, element_bytes, multiplied_bytes
    )
    by_shared = limits.shared_bytes_per_sm // (shared(block_g=block_g, block_n=block_n, depth=depth) + 1024)
    per_sm = max(1, min(by_shared, by_registers))
    most_tiles = batch * kv_heads * math.ceil(rows / block_g) * (math.ceil(capacity / block_n) + PART_TILES)
    return DecodeTiling(
        block_g=block_g,
        block_n=block_n,
        programs=min(limits.sm_count * per_sm, math.ceil(most_tiles / _MIN_SHARE_TILES)),
        min_tiles=_MIN_SHARE_TILES,
        num_warps=warps,
        # All programs are to run at one time: left alone, the compiler takes more, or spills to take fewer.
        max_registers=registers_for(warps, by_registers),
        # Page ids are loaded as far ahead of the keys and values that they lead to as those of their use.
        num_stages=depth if page_size == 0 else 2 * depth - 1,
    )


def registers_for(warps: int, programs_per_sm: int) -> int:
    """Registers that a thread may take where an SM is to hold so many programs of so many warps."""
    return min(255, _REGISTERS_PER_SM // (32 * warps * programs_per_sm) // 8 * 8)


def _decode_block_g(rows: int, head_dim: int, multiplied_bytes: int) -> int:
    """Rows that a program takes; those beyond find the keys and values in the L2 cache."""
    if rows * head_dim > _ONE_PASS_ELEMENTS:
        return _ONE_PASS_ELEMENTS // _next_power_of_two(head_dim)
    if multiplied_bytes == 4:
        # IEEE float32 products run on the plain units: no rows to pad to.
        return _next_power_of_two(rows)
    return max(16, _next_power_of_two(rows))  # a matrix instruction has 16 rows


def _decode_warps(block_g: int, block_d: int, block_n: int, multiplied_bytes: int) -> int:
    """As many as hold scores and accumulator in their registers."""
    if block_g * block_d > _ONE_PASS_ELEMENTS:
        return 16  # of a head_dim that is no power of two
    if multiplied_bytes == 4 and block_d > 128:
        return 8  # IEEE float32 products take a thread's share of both operands
    return 4 if block_g * (block_d + block_n) <= 8192 else 8


def _decode_programs_by_registers(
    block_g: int, block_d: int, block_n: int, warps: int, element_bytes: int, multiplied_bytes: int
) -> int:
    """Programs to an SM that leave each thread the registers that its loop needs."""
    if warps == 4:
        small = block_g <= 16 and block_d <= 128 and block_n <= 64
        return 3 if small and element_bytes == multiplied_bytes else 2
    return 2 if warps == 8 and multiplied_bytes == 4 and block_g <= 16 else 1


def _decode_shared_bytes(
    *,
    block_g: int,
    block_d: int,
    block_v: int,
    block_n: int,
    depth: int,
    element_bytes: int,
    multiplied_bytes: int,
    limits: GpuLimits,
) -> int:
    """Shared memory of a split program, no less than Triton 3.6 to 3.9 allot."""
    if multiplied_bytes == 4:
        # For the plain units all operands pass through it, widened tiles and scores among them; a tenth more
        # for the gaps that alignment leaves.
        widened = 0 if element_bytes == 4 else 4 * block_n * max(block_d, block_v)
        tiles = depth * block_n * (block_d + block_v) * element_bytes + widened
        return (tiles + 4 * block_g * (block_d + 2 * block_n)) * 11 // 10
    # Matrix instructions of 64 rows read tiles where they lie; others copy one to registers first.
    in_place = block_g >= 64 and limits.compute_capability // 10 in {9, 10}
    tiles = (depth if in_place else depth - 1) * block_n * (block_d + block_v) * element_bytes
    queries_and_probabilities = block_g * (block_d + block_n) * multiplied_bytes
    # The result passes through it once more, to be stored row by row.
    return max(tiles + queries_and_probabilities, 4 * block_g * block_v) + 2048


def _halved(value: int, least: int) -> tuple[int, ...]:
    """A power of two, half of it, and so on down to another."""
    return tuple(value >> by for by in range((value // least).bit_length()))


def _power_of_two_within(value: int) -> int:
    return 1 << (value.bit_length() - 1)


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def require_powers_of_two(tiling: object, *names: str) -> None:
    """Raise ValueError unless these fields of a tiling are powers of two."""
    for name in names:
        value = getattr(tiling, name)
        if type(value) is not int or value < 1 or value & (value - 1):
            raise ValueError(f"{name} is {value!r}; it must be a power of two")


def require_positive(tiling: object, *names: str) -> None:
    """Raise ValueError unless these fields of a tiling are whole numbers of at least 1."""
    for name in names:
        value = getattr(tiling, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an int of at least 1")
