"""Tile sizes, tile order and split-K of `prefill_matmul`, and the function that chooses them."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .gpu_limits import next_power_of_two, require_max_registers, require_positive, require_powers_of_two
from .matmul_tile_tables import (
    SM_RATES,
    MatmulProblem,
    TileConfig,
    few_row_tile,
    generation_of,
    many_row_tiles,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .gpu_limits import GpuLimits

Variant = Literal["pointers", "descriptors", "warp_specialized"]
VARIANTS: tuple[Variant, ...] = ("pointers", "descriptors", "warp_specialized")

TMA_FROM_CAPABILITY = 90
"""Compute capability (major and minor in one number) from which a GPU has the TMA."""

FEW_ROWS = 64
"""Up to this many rows one tile holds all of x, so that each weight is requested once."""

# Fixed costs in the estimates below and in the schedule simulation, assumed and not measured: starting and
# ending a CTA, and launching a second kernel.
PROGRAM_OVERHEAD_S = 1.5e-6
SECOND_KERNEL_S = 3e-6

SM_MEMORY_SHARE = 1.6
"""One SM draws at most this many times (DRAM bandwidth / SMs) while others are idle."""

_MIN_GRID_FILL = 0.9  # fraction of the SMs that must have a CTA
_GOOD_EFFICIENCY = 0.91  # of the roofline: an estimate this good ends the search
_MIN_SPLIT_STEPS = 4  # K steps of a split: fewer only fill the pipeline
_MAX_TAIL_SPLITS = 8  # K splits of the tiles of a tail wave


@dataclass(frozen=True, kw_only=True)
class MatmulTiling:
    """Tile sizes, tile order and split-K of one matmul.

    Attributes:
        block_m: rows of a tile.
        block_n: columns of a tile (rows of the weight); for "swiglu" half of them are the gate's.
        block_k: elements of K per step.
        group_m: row blocks of a group in the grouped (swizzled) tile order.
        num_splits: split-K: chunks of K for all tiles after the first `whole_tiles`.
        num_warps: warps per CTA.
        num_stages: stages of the software pipeline.
        variant: "pointers" loads through pointers; "descriptors" loads with the TMA in a persistent kernel;
            "warp_specialized" adds warp specialization and takes no splits.
        whole_tiles: leading tiles that are not split along K; the others are a stream-K-like tail.
        columns: leading columns that a tile computes; None means block_n. Only with "pointers".
        programs: CTAs resident on the GPU at once: the grid of a persistent kernel.
        weight_first: swap the operands (swap AB): rows of the weight become rows of the dot.
        max_registers: registers per thread at most; None leaves it to the compiler.
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_splits: int
    num_warps: int
    num_stages: int
    variant: Variant = "pointers"
    whole_tiles: int = 0
    columns: int | None = None
    programs: int = 1
    weight_first: bool = False
    max_registers: int | None = None

    def __post_init__(self) -> None:
        require_powers_of_two(self, "block_m", "block_n", "block_k", "num_warps")
        require_positive(self, "group_m", "num_splits", "num_stages", "programs")
        require_max_registers(self.max_registers)
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; it must be one of {', '.join(VARIANTS)}")
        if type(self.whole_tiles) is not int or self.whole_tiles < 0:
            raise ValueError(f"whole_tiles is {self.whole_tiles!r}; it must be an int of at least 0")
        if self.block_n < 2:
            raise ValueError(f"block_n is {self.block_n}; it must be at least 2")
        if self.columns is not None:
            if self.columns % 2 or not 2 <= self.columns <= self.block_n:
                raise ValueError(f"columns is {self.columns}; it must be even, from 2 to block_n, or None")
            if self.variant != "pointers":
                raise ValueError(f"columns is {self.columns}; it must be None unless the variant is pointers")
        if self.variant == "warp_specialized" and self.num_splits > 1:
            raise ValueError(
                f"num_splits is {self.num_splits}; it must be 1 where the variant is warp_specialized"
            )

    @property
    def block_columns(self) -> int:
        """Columns from one tile to the next."""
        return self.block_n if self.columns is None else self.columns


@functools.cache
def choose_matmul_tiling(
    problem: MatmulProblem, limits: GpuLimits, variant: Variant | None = None
) -> MatmulTiling:
    """The first of `matmul_tilings` whose estimate is near the roofline; if none is, the fastest one.

    Args:
        problem: M, N, K and operand types.
        limits: the GPU to run on.
        variant: the only variant to choose; None means "descriptors" for many rows where operands and GPU
            allow it and it helps, else "pointers".

    Returns:
        A tiling that fits the GPU's shared memory and keeps its accumulator in registers.
    """
    found: MatmulTiling | None = None
    shortest = math.inf
    for tiling in _tilings(problem, limits, variant):
        seconds = _estimated_s(problem, tiling, limits)
        # The largest tile reads least from L2. Smaller tiles and split-K only help to fill the GPU.
        if _roof_s(problem, limits) >= _GOOD_EFFICIENCY * seconds:
            return tiling
        if seconds < shortest:
            found, shortest = tiling, seconds
    assert found is not None  # noqa: S101  (there is a tiling for every problem)
    return found


def matmul_tilings(
    problem: MatmulProblem, limits: GpuLimits, variant: Variant | None = None
) -> tuple[MatmulTiling, ...]:
    """All tilings that `choose_matmul_tiling` considers for the same arguments, the largest tiles first."""
    return tuple(_tilings(problem, limits, variant))


def _tilings(problem: MatmulProblem, limits: GpuLimits, variant: Variant | None) -> Iterator[MatmulTiling]:
    if variant is None:
        # Few rows stream their weights, without reuse, so the TMA does not help. On sm_120, whose mma
        # instructions take operands from registers, the pointer loop has fewer instructions.
        tma_helps = problem.rows > FEW_ROWS and generation_of(limits) != 120
        has_tma = limits.compute_capability >= TMA_FROM_CAPABILITY
        variant = "descriptors" if problem.tma and has_tma and tma_helps else "pointers"
        promotes = problem.scaled_k is not None and problem.x_bytes == 1
        if variant == "descriptors" and promotes and generation_of(limits) == 100:
            # Some warps promote products while others multiply the next block of K.
            yield from _tilings(problem, limits, "warp_specialized")
    if problem.rows <= FEW_ROWS and variant == "pointers":
        yield from _few_row_tilings(problem, limits)
        return
    for tile in many_row_tiles(problem, limits):
        yield from _with_tail_splits(problem, tile, limits, variant)


def _few_row_tilings(problem: MatmulProblem, limits: GpuLimits) -> list[MatmulTiling]:
    """One tile holds all rows, and is so narrow that every SM gets one.

    Reading the weights from DRAM is the bound: bytes in flight matter, so pipelines fill shared memory.
    """
    tile = few_row_tile(problem, max(16, next_power_of_two(problem.rows)), limits)
    whole = _unsplit(tile, limits, group_m=1)
    # Converting int8 weights, and a tcgen05 tile, cost the same whether or not all columns are used.
    costly = problem.kind == "int8_weight" or (
        generation_of(limits) == 100 and (tile.m == 64 or tile.weight_first)
    )
    min_columns = tile.n * (4 if costly else 2) // 5
    max_splits = max(1, math.ceil(problem.in_features / tile.k) // _MIN_SPLIT_STEPS)
    if problem.scaled_k is not None and generation_of(limits) == 100:
        return _aligned_tilings(whole, max_splits, min_columns)
    tilings = []
    for splits in range(1, max_splits + 1):
        tiles = math.ceil(_MIN_GRID_FILL * limits.sm_count / (problem.batch * splits))
        columns = tile.n if tiles <= 1 else min(tile.n, _even_below(problem.out_features / (tiles - 1)))
        if columns >= min_columns:
            live = None if columns == tile.n else columns
            tilings.append(dataclasses.replace(whole, num_splits=splits, columns=live))
        if columns == tile.n:
            break
    if not tilings:  # too few weights for all SMs
        tilings = [dataclasses.replace(whole, num_splits=max_splits)]
    return tilings


def _aligned_tilings(whole: MatmulTiling, max_splits: int, min_columns: int) -> list[MatmulTiling]:
    """Tiles whose columns share one block scale of the weight: a scale per column takes too many loads."""
    halves = [whole.block_n // 2] if whole.block_n // 2 >= min_columns else []
    return [
        dataclasses.replace(whole, num_splits=splits, columns=columns)
        for splits in range(1, max_splits + 1)
        for columns in (None, *halves)
    ]


def _with_tail_splits(
    problem: MatmulProblem, tile: TileConfig, limits: GpuLimits, variant: Variant
) -> Iterator[MatmulTiling]:
    """The tiling without split-K, then with the tiles of the tail wave split along K, to fill the GPU."""
    resident_ctas = limits.sm_count * tile.per_sm
    tiles = problem.batch * math.ceil(problem.rows / tile.m) * math.ceil(problem.out_features / tile.n)
    tiling = _unsplit(tile, limits, group_m=_group_m(problem, tile, resident_ctas, limits))
    if variant == "warp_specialized":
        yield dataclasses.replace(tiling, variant=variant, max_registers=None)
        return
    tiling = dataclasses.replace(tiling, variant=variant)
    yield tiling
    steps = math.ceil(problem.in_features / tile.k)
    for left in sorted({tiles % resident_ctas, tiles % limits.sm_count} - {0}):
        most = min(max(_MAX_TAIL_SPLITS, resident_ctas // left), steps // _MIN_SPLIT_STEPS)
        for splits in range(2, most + 1):
            yield dataclasses.replace(tiling, num_splits=splits, whole_tiles=tiles - left)


def _unsplit(tile: TileConfig, limits: GpuLimits, *, group_m: int) -> MatmulTiling:
    return MatmulTiling(
        block_m=tile.m,
        block_n=tile.n,
        block_k=tile.k,
        group_m=group_m,
        num_splits=1,
        num_warps=tile.warps,
        num_stages=tile.stages,
        programs=limits.sm_count * tile.per_sm,
        weight_first=tile.weight_first,
        max_registers=tile.max_registers,
    )


def _group_m(problem: MatmulProblem, tile: TileConfig, resident_ctas: int, limits: GpuLimits) -> int:
    """Group size of the tile order with the least DRAM traffic; among equals, with the smallest L2 footprint.

    A wave of tiles covers `group` row blocks and `wave / group` column blocks. Rows of x are read once if L2
    keeps them until the next wave of the group, else once per wave. Weights are read once if L2 keeps all of
    them, else once per group.
    """
    blocks_m = math.ceil(problem.rows / tile.m)
    blocks_n = math.ceil(problem.out_features / tile.n)
    wave = min(resident_ctas, blocks_m * blocks_n)
    x_block = tile.m * problem.in_features * problem.x_bytes
    weight_block = tile.n * problem.in_features * problem.weight_bytes
    result_tile = tile.m * tile.n * 2
    l2_bytes = SM_RATES[generation_of(limits)][2]

    def read_bytes(group: int) -> tuple[float, float]:
        """Bytes read from DRAM, and the bytes that L2 must hold for that."""
        wave_n = min(blocks_n, max(1.0, wave / group))
        wave_m = max(group, wave / wave_n)
        # The footprint between two waves, and between two groups, partly covered blocks included.
        for_x = wave_m * x_block + (wave_n + 1) * weight_block + wave * result_tile
        pass_m = max(group, wave / blocks_n)
        for_weight = max(2 * group, wave / blocks_n + 1) * x_block + pass_m * blocks_n * result_tile
        for_weight += blocks_n * weight_block
        groups = math.ceil(blocks_m / group)
        keeps_weight = groups > 1 and for_weight <= l2_bytes
        weight_times = 1 if keeps_weight else groups
        x_times = 1.0 if for_x <= l2_bytes else max(1.0, blocks_n / wave_n)
        moved = blocks_n * weight_block * weight_times + blocks_m * x_block * x_times
        return moved, for_weight if keeps_weight else for_x

    powers = [1 << exponent for exponent in range(blocks_m.bit_length())]
    sizes = {min(blocks_m, size) for power in powers for size in (power, 3 * power)}
    return min(sorted(sizes), key=read_bytes)


def _estimated_s(problem: MatmulProblem, tiling: MatmulTiling, limits: GpuLimits) -> float:
    """Estimated seconds: the larger of DRAM time and tensor-core time of the fullest SM, plus fixed costs."""
    flop_per_s, bytes_per_s = _rates(problem, limits)
    per_sm = max(1, tiling.programs // limits.sm_count)
    resident_ctas = limits.sm_count * per_sm
    tiles = problem.batch * math.ceil(problem.rows / tiling.block_m)
    tiles *= math.ceil(problem.out_features / tiling.block_columns)
    whole = tiles if tiling.num_splits == 1 else min(tiling.whole_tiles, tiles)
    splits = (tiles - whole) * tiling.num_splits
    k_steps = math.ceil(problem.in_features / tiling.block_k)
    step_s = 2.0 * tiling.block_m * tiling.block_n * tiling.block_k / flop_per_s

    def most_on_an_sm(items: int) -> int:
        waves, left = divmod(items, resident_ctas)
        return waves * per_sm + min(per_sm, math.ceil(left / limits.sm_count))

    most_whole, most_split = most_on_an_sm(whole), most_on_an_sm(splits)
    tensor_core_s = step_s * (most_whole * k_steps + most_split * math.ceil(k_steps / tiling.num_splits))
    partial_bytes = 4.0 * (tiles - whole) / tiles * tiling.num_splits * problem.rows * problem.out_features
    partial_bytes *= problem.batch
    moved = problem.input_bytes + problem.result_bytes * whole / tiles + partial_bytes
    # Full waves draw the whole DRAM bandwidth; a tail wave only what its SMs can draw.
    items = whole + splits
    last = items % limits.sm_count
    busy = min(1.0, SM_MEMORY_SHARE * last / limits.sm_count)
    memory_s = moved / (bytes_per_s * limits.sm_count) * (1.0 + (last / busy - last if last else 0.0) / items)
    fixed_s = PROGRAM_OVERHEAD_S * math.ceil((most_whole + most_split) / per_sm)
    if splits:
        result_bytes = problem.result_bytes * (tiles - whole) / tiles
        fixed_s += SECOND_KERNEL_S + (partial_bytes + result_bytes) / (bytes_per_s * limits.sm_count)
    return max(tensor_core_s, memory_s) + fixed_s


def _roof_s(problem: MatmulProblem, limits: GpuLimits) -> float:
    """Roofline time, the least that any schedule can take."""
    flop_per_s, bytes_per_s = _rates(problem, limits)
    memory_s = (problem.input_bytes + problem.result_bytes) / bytes_per_s
    return max(problem.operations / flop_per_s, memory_s) / limits.sm_count


def _rates(problem: MatmulProblem, limits: GpuLimits) -> tuple[float, float]:
    """Operations and DRAM bytes per second and SM."""
    flop_per_s, bytes_per_s, _ = SM_RATES[generation_of(limits)]
    factor = {"float8": 2.0, "int8": 2.0, "tf32": 0.5, "tf32x3": 0.5 / 3, "float32": 0.0625}.get(
        problem.kind, 1.0
    )
    return flop_per_s * factor, bytes_per_s


def _even_below(limit: float) -> int:
    """The largest even number below `limit`."""
    return 2 * (math.ceil(limit / 2) - 1)
