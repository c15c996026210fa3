"""How `prefill_matmul` cuts its work, and the pure function that chooses it from shapes and a GPU."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .matmul_blocks import SM_RATES, Block, Product, few_row_block, generation_of, kind_of, many_row_blocks
from .tiling import require_positive, require_powers_of_two

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .tiling import GpuLimits

Variant = Literal["pointers", "descriptors", "warp_specialized"]
VARIANTS: tuple[Variant, ...] = ("pointers", "descriptors", "warp_specialized")

DESCRIPTORS_FROM = 90
"""Compute capability (major and minor in one number) from which a GPU has tensor descriptors."""

FEW_ROWS = 64
"""Up to here one tile holds all rows, so that each weight is requested once."""

# What the estimates below, and the simulation of a schedule, count beside bytes and operations. Stated, not
# measured: to start and end a program, and to launch a second kernel.
PROGRAM_S = 1.5e-6
SECOND_KERNEL_S = 3e-6

SM_MEMORY_SHARE = 1.6
"""One SM cannot take all of the bandwidth that idle ones leave: at most so many times its fair share."""

_FULL_GRID = 0.9  # of the SMs must have a program
_GOOD_EFFICIENCY = 0.91
_LEAST_STEPS = 4  # of a share of K: fewer only fill the pipeline
_MOST_SPLITS = 8  # of the tiles that a last wave leaves over


@dataclass(frozen=True, kw_only=True)
class MatmulTiling:
    """How a product is cut.

    Attributes:
        block_m: rows of a tile.
        block_n: columns of a tile: rows of the weight; for "swiglu" half of them are the gate's.
        block_k: elements of K in a step.
        group_m: row blocks of a group of tiles.
        num_splits: shares of K that tiles are cut into, but for the first `whole_tiles`.
        num_warps: of a program.
        num_stages: of its pipeline.
        variant: how operands are loaded; "pointers" where the others do not go. "warp_specialized" takes no
            splits.
        whole_tiles: so many tiles, the first ones, are not cut.
        columns: of a tile's columns the first so many are its own; all when none. With "pointers" alone.
        programs: that the GPU holds at one time; where the variant is not "pointers" there are no more, and
            they take one item after another.
        weight_first: whether the transposed product is computed, rows of the weight on top.
        max_registers: of a thread; as many as the compiler likes when none.
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
                raise ValueError(
                    f"columns is {self.columns}; it must be None where the variant is not pointers"
                )
        if self.variant == "warp_specialized" and self.num_splits > 1:
            raise ValueError(f"num_splits is {self.num_splits}; it must be 1 where warps are specialised")
        if self.max_registers is not None and not 32 <= self.max_registers <= 255:
            raise ValueError(f"max_registers is {self.max_registers}; it must be from 32 to 255, or None")

    @property
    def block_columns(self) -> int:
        """Columns from one tile to the next."""
        return self.block_n if self.columns is None else self.columns


@functools.cache
def choose_matmul_tiling(
    *,
    rows: int,
    out_features: int,
    in_features: int,
    element_bytes: int,
    aligned: bool,
    limits: GpuLimits,
    weight_element_bytes: int | None = None,
    batch: int = 1,
    tf32: bool = False,
    descriptors: bool = False,
    variant: Variant | None = None,
) -> MatmulTiling:
    """The tiling of [rows, in_features] times [out_features, in_features] transposed.

    Of those of `matmul_tilings` the first that should come near the roof; where none does, the fastest by
    the same estimate.

    Args:
        rows: M, the tokens; of each batch.
        out_features: N, rows of the weight.
        in_features: K.
        element_bytes: size of an element of x.
        aligned: whether both operands can be loaded 16 bytes at a time.
        limits: the GPU to run on.
        weight_element_bytes: size of an element of the weight; that of x when none.
        batch: products, each with rows of its own.
        tf32: whether elements of 4 bytes are multiplied as tf32; as IEEE float32 when not.
        descriptors: whether both operands can be loaded by tensor descriptors.
        variant: the only one to choose; when none, "descriptors" for many rows where they can be and pay,
            else "pointers".

    Returns:
        A tiling that fits the GPU's shared memory and keeps its accumulator in registers.
    """
    product = _product_of(
        batch,
        rows,
        out_features,
        in_features,
        element_bytes,
        weight_element_bytes,
        tf32=tf32,
        aligned=aligned,
    )
    found: MatmulTiling | None = None
    shortest = math.inf
    for tiling in _tilings(product, limits, variant, descriptors=descriptors):
        seconds = _estimated_s(product, tiling, limits)
        # The largest tile asks L2 for the least: a smaller one, or splits, must be needed to fill the GPU.
        if _roof_s(product, limits) >= _GOOD_EFFICIENCY * seconds:
            return tiling
        if seconds < shortest:
            found, shortest = tiling, seconds
    assert found is not None  # noqa: S101  (there is a tiling for every product)
    return found


def matmul_tilings(
    *,
    rows: int,
    out_features: int,
    in_features: int,
    element_bytes: int,
    aligned: bool,
    limits: GpuLimits,
    weight_element_bytes: int | None = None,
    batch: int = 1,
    tf32: bool = False,
    descriptors: bool = False,
    variant: Variant | None = None,
) -> tuple[MatmulTiling, ...]:
    """All tilings that `choose_matmul_tiling` chooses from by the same arguments, the largest tiles first."""
    product = _product_of(
        batch,
        rows,
        out_features,
        in_features,
        element_bytes,
        weight_element_bytes,
        tf32=tf32,
        aligned=aligned,
    )
    return tuple(_tilings(product, limits, variant, descriptors=descriptors))


def _product_of(
    batch: int,
    rows: int,
    features: int,
    in_features: int,
    x_bytes: int,
    weight_bytes: int | None,
    *,
    tf32: bool,
    aligned: bool,
) -> Product:
    weight_bytes = weight_bytes or x_bytes
    return Product(
        batch=batch,
        rows=rows,
        features=features,
        in_features=in_features,
        x_bytes=x_bytes,
        weight_bytes=weight_bytes,
        kind=kind_of(x_bytes, weight_bytes, tf32=tf32),
        aligned=aligned,
    )


def _tilings(
    product: Product, limits: GpuLimits, variant: Variant | None, *, descriptors: bool
) -> Iterator[MatmulTiling]:
    if variant is None:
        # A few rows stream their weights: nothing is used twice that a copy engine would help with. On
        # sm_120, whose matrix instructions take registers, loops through pointers have fewer instructions.
        better = product.rows > FEW_ROWS and generation_of(limits) != 120
        variant = "descriptors" if descriptors and better else "pointers"
    if product.rows <= FEW_ROWS and variant == "pointers":
        yield from _few_row_tilings(product, limits)
        return
    for block in many_row_blocks(product, limits):
        yield from _cuts(product, block, limits, variant)


def _few_row_tilings(product: Product, limits: GpuLimits) -> list[MatmulTiling]:
    """All rows in one tile, and tiles so narrow that there is one for every SM.

    The weights are the bill: what counts is bytes on their way, so pipelines fill the shared memory.
    """
    block = few_row_block(product, max(16, 1 << (product.rows - 1).bit_length()), limits)
    whole = MatmulTiling(
        block_m=block.m,
        block_n=block.n,
        block_k=block.k,
        group_m=1,
        num_splits=1,
        num_warps=block.warps,
        num_stages=block.stages,
        programs=limits.sm_count * block.per_sm,
        weight_first=block.weight_first,
        max_registers=block.max_registers,
    )
    # Converted weights, and tiles of sm_100's products, cost the same whether their columns are used.
    costly = product.kind == "int8_weight" or (
        generation_of(limits) == 100 and (block.m == 64 or block.weight_first)
    )
    least_columns = block.n * (4 if costly else 2) // 5
    most_splits = max(1, math.ceil(product.in_features / block.k) // _LEAST_STEPS)
    filling = []
    for splits in range(1, most_splits + 1):
        tiles = math.ceil(_FULL_GRID * limits.sm_count / (product.batch * splits))
        columns = block.n if tiles <= 1 else min(block.n, _multiple_below(product.features / (tiles - 1), 2))
        if columns >= least_columns:
            own = None if columns == block.n else columns
            filling.append(dataclasses.replace(whole, num_splits=splits, columns=own))
        if columns == block.n:
            break
    if not filling:  # too few weights for all SMs
        filling = [dataclasses.replace(whole, num_splits=most_splits)]
    return filling


def _cuts(product: Product, block: Block, limits: GpuLimits, variant: Variant) -> Iterator[MatmulTiling]:
    """Whole tiles, and those of a last wave that leaves SMs idle cut along K."""
    slots = limits.sm_count * block.per_sm
    tiles = product.batch * math.ceil(product.rows / block.m) * math.ceil(product.features / block.n)
    tiling = MatmulTiling(
        block_m=block.m,
        block_n=block.n,
        block_k=block.k,
        group_m=_group_m(product, block, slots, limits),
        num_splits=1,
        num_warps=block.warps,
        num_stages=block.stages,
        variant=variant,
        programs=slots,
        weight_first=block.weight_first,
        max_registers=block.max_registers if variant != "warp_specialized" else None,
    )
    yield tiling
    if variant == "warp_specialized":
        return
    steps = math.ceil(product.in_features / block.k)
    for left in sorted({tiles % slots, tiles % limits.sm_count} - {0}):
        most = min(max(_MOST_SPLITS, slots // left), steps // _LEAST_STEPS)
        for splits in range(2, most + 1):
            yield dataclasses.replace(tiling, num_splits=splits, whole_tiles=tiles - left)


def _group_m(product: Product, block: Block, slots: int, limits: GpuLimits) -> int:
    """Row blocks of a group, of those that leave DRAM the least to serve.

    A wave of tiles covers `group` row blocks and `wave / group` column blocks. Its rows of x are read once
    where the L2 cache holds them until the next wave of the group, and else again by each; the weights once
    where it holds all of them, and else again by each group. Of equals the one that L2 holds most easily.
    """
    blocks_m = math.ceil(product.rows / block.m)
    blocks_n = math.ceil(product.features / block.n)
    wave = min(slots, blocks_m * blocks_n)
    x_block = block.m * product.in_features * product.x_bytes
    weight_block = block.n * product.in_features * product.weight_bytes
    tile = block.m * block.n * 2  # of the result
    l2_bytes = SM_RATES[generation_of(limits)][2]

    def read_bytes(group: int) -> tuple[float, float]:
        """Bytes from DRAM, and what L2 must hold for them."""
        wave_n = min(blocks_n, max(1.0, wave / group))
        wave_m = max(group, wave / wave_n)
        # From one wave to the next, and from one group to the next, with the blocks that both only touch.
        for_x = wave_m * x_block + (wave_n + 1) * weight_block + wave * tile
        pass_m = max(group, wave / blocks_n)
        for_weight = max(2 * group, wave / blocks_n + 1) * x_block + pass_m * blocks_n * tile
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


def _estimated_s(product: Product, tiling: MatmulTiling, limits: GpuLimits) -> float:
    """Seconds of a product by its bytes, its operations on the fullest SM, and the costs stated above."""
    flop_per_s, bytes_per_s = _rates(product, limits)
    per_sm = max(1, tiling.programs // limits.sm_count)
    slots = limits.sm_count * per_sm
    tiles = product.batch * math.ceil(product.rows / tiling.block_m)
    tiles *= math.ceil(product.features / tiling.block_columns)
    whole = tiles if tiling.num_splits == 1 else min(tiling.whole_tiles, tiles)
    shares = (tiles - whole) * tiling.num_splits
    k_steps = math.ceil(product.in_features / tiling.block_k)
    step_s = 2.0 * tiling.block_m * tiling.block_n * tiling.block_k / flop_per_s

    def most_on_an_sm(items: int) -> int:
        rounds, left = divmod(items, slots)
        return rounds * per_sm + min(per_sm, math.ceil(left / limits.sm_count))

    wholes, cuts = most_on_an_sm(whole), most_on_an_sm(shares)
    matrix_s = step_s * (wholes * k_steps + cuts * math.ceil(k_steps / tiling.num_splits))
    partial_bytes = 4.0 * (tiles - whole) / tiles * tiling.num_splits * product.rows * product.features
    partial_bytes *= product.batch
    moved = product.input_bytes + product.result_bytes * whole / tiles + partial_bytes
    # Items as many on each SM draw on all of the bandwidth, the others on what their SMs can take.
    items = whole + shares
    last = items % limits.sm_count
    busy = min(1.0, SM_MEMORY_SHARE * last / limits.sm_count)
    memory_s = moved / (bytes_per_s * limits.sm_count) * (1.0 + (last / busy - last if last else 0.0) / items)
    fixed_s = PROGRAM_S * math.ceil((wholes + cuts) / per_sm)
    if shares:
        result_bytes = product.result_bytes * (tiles - whole) / tiles
        fixed_s += SECOND_KERNEL_S + (partial_bytes + result_bytes) / (bytes_per_s * limits.sm_count)
    return max(matrix_s, memory_s) + fixed_s


def _roof_s(product: Product, limits: GpuLimits) -> float:
    """Seconds that the product takes at least."""
    flop_per_s, bytes_per_s = _rates(product, limits)
    memory_s = (product.input_bytes + product.result_bytes) / bytes_per_s
    return max(product.operations / flop_per_s, memory_s) / limits.sm_count


def _rates(product: Product, limits: GpuLimits) -> tuple[float, float]:
    """Operations and bytes of an SM in a second."""
    flop_per_s, bytes_per_s, _ = SM_RATES[generation_of(limits)]
    factor = {"float8": 2.0, "tf32": 0.5, "float32": 0.0625}.get(product.kind, 1.0)
    return flop_per_s * factor, bytes_per_s


def _multiple_below(limit: float, unit: int) -> int:
    """The largest multiple of a unit that is less than a limit."""
    return (math.ceil(limit / unit) - 1) * unit
