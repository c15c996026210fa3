"""Tile-size tables by dtype and GPU for `prefill_matmul`, and their lookup."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .gpu_limits import registers_for

if TYPE_CHECKING:
    from .gpu_limits import GpuLimits

DotKind = Literal["float16", "float8", "int8", "int8_weight", "tf32", "tf32x3", "float32"]
"""Operands of a dot: 16-bit floats, 8-bit floats, int8, 16-bit floats by 8 bits, float32 as tf32 or IEEE.

The narrower of two operands is converted to the dtype of the other, in registers.
"""

# From the datasheets, by compute capability: dense 16-bit operations and DRAM bytes per second and SM, and
# bytes of the L2 cache.
SM_RATES = {
    80: (2.89e12, 18.9e9, 40 << 20),
    86: (0.87e12, 11.4e9, 6 << 20),
    89: (2.55e12, 6.1e9, 48 << 20),
    90: (7.49e12, 25.4e9, 50 << 20),
    100: (15.2e12, 54.1e9, 126 << 20),
    120: (1.23e12, 10.5e9, 96 << 20),
}


@dataclass(frozen=True, kw_only=True)
class MatmulProblem:
    """M, N, K and operand types of one matmul, as far as its tiling depends on them.

    Attributes:
        rows: M, tokens of one batch.
        out_features: N, rows of the weight.
        in_features: K.
        x_bytes: bytes of an element of x.
        weight_bytes: bytes of an element of the weight.
        batch: matmuls, each with its own rows.
        aligned: whether both operands can be loaded 16 bytes at a time.
        tma: whether both operands meet the alignment rules of tensor descriptors.
        tf32: tf32 products per product of float32: 1, or 3 for "tf32x3"; 0 where IEEE float32 is multiplied.
        integer: whether both operands are int8.
        scaled_k: elements of K that have the same scales; None means all of them.
        column_scales: whether columns of a tile have block scales of their own.
    """

    rows: int
    out_features: int
    in_features: int
    x_bytes: int
    weight_bytes: int
    batch: int = 1
    aligned: bool
    tma: bool = False
    tf32: int = 0
    integer: bool = False
    scaled_k: int | None = None
    column_scales: bool = False

    @classmethod
    def contiguous(
        cls,
        *,
        rows: int,
        out_features: int,
        in_features: int,
        x_bytes: int,
        weight_bytes: int,
        batch: int = 1,
    ) -> MatmulProblem:
        """The problem of contiguous operands whose storage is aligned to 16 bytes."""
        return cls(
            rows=rows,
            out_features=out_features,
            in_features=in_features,
            x_bytes=x_bytes,
            weight_bytes=weight_bytes,
            batch=batch,
            aligned=in_features % 16 == 0,
            tma=batch == 1 and all(in_features * size % 16 == 0 for size in (x_bytes, weight_bytes)),
        )

    @property
    def kind(self) -> DotKind:
        """The dot that these element sizes give."""
        narrow, wide = sorted((self.x_bytes, self.weight_bytes))
        if wide == 4:
            return "float32" if not self.tf32 else "tf32x3" if self.tf32 == 3 else "tf32"
        if wide == 1:
            return "int8" if self.integer else "float8"
        return "int8_weight" if narrow == 1 else "float16"

    @property
    def operations(self) -> float:
        """2 M N K per batch."""
        return 2.0 * self.batch * self.rows * self.out_features * self.in_features

    @property
    def input_bytes(self) -> int:
        """Bytes of x and weight, each read once."""
        x, weight = self.rows * self.x_bytes, self.out_features * self.weight_bytes
        return self.batch * self.in_features * (x + weight)

    @property
    def result_bytes(self) -> int:
        """Bytes of the result, whose elements have at least 16 bits."""
        return self.batch * self.rows * self.out_features * max(2, self.x_bytes)


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Tile sizes, warps and pipeline stages of a CTA; `per_sm` is its occupancy in CTAs per SM."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    per_sm: int = 1
    weight_first: bool = False
    max_registers: int | None = None


def generation_of(limits: GpuLimits) -> int:
    """The newest compute capability of the table that is not newer than the GPU's."""
    return max((each for each in SM_RATES if each <= limits.compute_capability), default=80)


_LARGEST = TileConfig(m=128, n=256, k=64, warps=8, stages=4)
_SQUARE = TileConfig(m=128, n=128, k=64, warps=8, stages=3)
_TWO_SQUARES = replace(_SQUARE, per_sm=2, max_registers=registers_for(8, 2))
_NARROW = TileConfig(m=128, n=64, k=64, warps=4, stages=4, per_sm=2)
_FLOAT8_K = 128  # as many bytes as 64 elements of 16 bits

# Tiles for many rows by dot kind and GPU, the largest first. GPUs not listed use the next older one.
_MANY_ROWS: dict[DotKind, dict[int, tuple[TileConfig, ...]]] = {
    "float16": {
        80: (replace(_LARGEST, stages=3), _SQUARE, _NARROW),
        86: (_SQUARE, replace(_NARROW, stages=3)),
        # A flattened tile loop pays for a fourth stage with more instructions.
        90: (replace(_LARGEST, stages=3), _TWO_SQUARES, _NARROW),
        100: (_LARGEST, _TWO_SQUARES, _NARROW),
        120: (_SQUARE, replace(_NARROW, stages=3)),
    },
    "float8": {
        80: (TileConfig(m=64, n=128, k=64, warps=4, stages=3, per_sm=2),),
        89: (_SQUARE,),
        # Three accumulators take registers, so the tile is smaller; two parts of 128 per K step overlap.
        90: (replace(_SQUARE, stages=3, k=2 * _FLOAT8_K),),
        100: tuple(replace(tile, k=_FLOAT8_K) for tile in (_LARGEST, _TWO_SQUARES, _NARROW)),
        120: (_SQUARE,),
    },
    "int8": {
        80: (replace(_LARGEST, stages=3, k=128), replace(_SQUARE, k=128), replace(_NARROW, k=128)),
        86: (replace(_SQUARE, k=128), replace(_NARROW, stages=3, k=128)),
        90: (replace(_LARGEST, stages=3, k=128), replace(_TWO_SQUARES, k=128), replace(_NARROW, k=128)),
        # Triton 3.6 multiplies int8 with mma.sync there, whose operands take registers: a short K step.
        100: (replace(_LARGEST, stages=6), replace(_TWO_SQUARES, stages=5), replace(_NARROW, stages=6)),
        120: (replace(_SQUARE, k=128), replace(_NARROW, stages=3, k=128)),
    },
    "int8_weight": {
        80: (_SQUARE,),
        86: (replace(_SQUARE, k=32),),
        90: (replace(_LARGEST, stages=3), _TWO_SQUARES),
        100: (_LARGEST,),  # smaller tiles are bound by the conversion to 16 bits
        120: (replace(_SQUARE, k=32),),
    },
    "tf32": {80: (replace(_SQUARE, k=32),)},
    # Both operands are split in two tf32 values, in registers.
    "tf32x3": {80: (TileConfig(m=64, n=64, k=32, warps=4, stages=3, per_sm=2),)},
    # IEEE float32 products use the FMA units, with operands in registers: small tiles and a small K step.
    "float32": {80: (TileConfig(m=128, n=64, k=16, warps=8, stages=3, per_sm=2),)},
}

# With scales per block of K a product of each block is promoted: its registers are beside those of the sums.
_BLOCK_SCALED_ROWS: dict[DotKind, dict[int, tuple[TileConfig, ...]]] = {
    "float8": {
        80: _MANY_ROWS["float8"][80],
        89: (replace(_SQUARE, k=_FLOAT8_K),),
        90: _MANY_ROWS["float8"][90],
        100: (replace(_SQUARE, k=_FLOAT8_K, stages=6),),
        120: (replace(_SQUARE, k=_FLOAT8_K),),
    },
    "int8": {
        80: (replace(_SQUARE, k=_FLOAT8_K),),
        90: _MANY_ROWS["float8"][90],
        100: (replace(_SQUARE, k=_FLOAT8_K, stages=6),),
        120: (replace(_SQUARE, k=_FLOAT8_K),),
    },
    "int8_weight": {
        80: (_SQUARE,),
        86: (replace(_SQUARE, k=32),),
        90: (_SQUARE,),
        120: (replace(_SQUARE, k=32),),
    },
}

# Without 16-byte cp.async each element passes through registers: a large tile would spill.
_UNALIGNED_ROWS: dict[DotKind, TileConfig] = {
    "float16": TileConfig(m=64, n=128, k=32, warps=8, stages=2, per_sm=2),
    "float8": TileConfig(m=64, n=64, k=32, warps=8, stages=2, per_sm=2),
    "int8": TileConfig(m=64, n=64, k=32, warps=8, stages=2, per_sm=2),
    "int8_weight": TileConfig(m=64, n=128, k=32, warps=8, stages=2, per_sm=2),
    "tf32": TileConfig(m=64, n=64, k=32, warps=8, stages=2, per_sm=2),
    "tf32x3": TileConfig(m=64, n=64, k=32, warps=8, stages=2, per_sm=2),
    "float32": TileConfig(m=32, n=64, k=16, warps=8, stages=3, per_sm=3),
}


def many_row_tiles(problem: MatmulProblem, limits: GpuLimits) -> tuple[TileConfig, ...]:
    """Tiles for many rows, the largest first."""
    if not problem.aligned:
        return (_UNALIGNED_ROWS[problem.kind],)
    generation = generation_of(limits)
    by_generation = (_MANY_ROWS if problem.scaled_k is None else _BLOCK_SCALED_ROWS)[problem.kind]
    tiles = by_generation[max(each for each in by_generation if each <= generation)]
    if problem.column_scales and generation in {90, 100}:
        # A thread holds the scales of its columns, so the tile has fewer, and no second product in flight.
        return tuple(replace(tile, n=64, k=min(tile.k, _FLOAT8_K), stages=4) for tile in tiles)
    if problem.x_bytes < problem.weight_bytes:
        # Converting x takes registers; without a limit the compiler spills to fit one more CTA.
        tiles = tuple(
            replace(tile, max_registers=tile.max_registers or registers_for(tile.warps, tile.per_sm))
            for tile in tiles
        )
    # On sm_80 the largest tile leaves no registers for the masks of a partly used tile.
    tight = generation == 80 and problem.out_features % 256
    return tuple(tile for tile in tiles if not (tight and tile.n == 256))


def few_row_tile(problem: MatmulProblem, m: int, limits: GpuLimits) -> TileConfig:
    """The tile of `m` rows, 16 to 64, with as many stages as fit in shared memory at its occupancy."""
    if problem.kind == "float32":
        return TileConfig(m=m, n=64, k=32 if m == 16 else 16, warps=4, stages=3)
    if not problem.aligned:
        return replace(_UNALIGNED_ROWS[problem.kind], m=m, per_sm=1)
    generation = generation_of(limits)
    # If wide tiles are enough to fill the GPU, they read x from L2 less often.
    wide = problem.out_features >= 2 * 64 * limits.sm_count
    pick = {
        "float16": _few_float16,
        "float8": _few_float8,
        "int8": _few_float8,
        "int8_weight": _few_int8,
        "tf32": _few_tf32,
        "tf32x3": _few_tf32,
    }
    if problem.scaled_k is not None:
        of_8_bits = problem.x_bytes == 1
        tile = (_few_blocks if of_8_bits else _few_int8_blocks)(m, generation, wide)
        return _with_stages(tile, problem, limits)
    return _with_stages(pick[problem.kind](m, generation, wide), problem, limits)


def _few_float16(m: int, generation: int, wide: bool) -> TileConfig:
    if m == 64 and generation == 100:
        # A narrower tile would leave most of the shared memory to x.
        return TileConfig(m=m, n=64, k=32, warps=4, stages=0, per_sm=2)
    n = 64 if wide else 32
    return TileConfig(m=m, n=n, k=64 if m == 64 else 4096 // n, warps=4, stages=0, per_sm=2)


def _few_tf32(m: int, _generation: int, _wide: bool) -> TileConfig:
    return TileConfig(m=m, n=64 if m == 64 else 32, k=32, warps=4, stages=0, per_sm=2)


def _few_blocks(m: int, generation: int, wide: bool) -> TileConfig:
    """Float8 or int8 with scales per block of K, which a step should not be shorter than."""
    tile = _few_float8(m, generation, wide)
    return tile if m < 64 or generation != 100 else replace(tile, k=_FLOAT8_K)


def _few_float8(m: int, generation: int, wide: bool) -> TileConfig:
    if generation == 100 and m < 64 and not wide:
        return TileConfig(m=m, n=32, k=256, warps=4, stages=0, per_sm=2)
    k = 64 if generation == 100 and m == 64 else 128
    # wgmma and tcgen05 have at least 64 rows: swap the operands, so that they are rows of the weight.
    swapped = m < 64 and generation in {90, 100}
    return TileConfig(m=m, n=64, k=k, warps=4, stages=0, per_sm=2, weight_first=swapped)


def _few_int8(m: int, generation: int, _wide: bool) -> TileConfig:
    """Tiles whose int8 weights are converted in registers; large tiles need fewer instructions for it."""
    large = TileConfig(m=m, n=128, k=64, warps=4, stages=0, per_sm=2)
    small = replace(large, n=64, k=128)
    if generation == 100:
        # Converted weights pass through tensor memory, which holds the first operand.
        return replace(large, k=64 if m == 64 else 128, per_sm=2 if m == 16 else 1, weight_first=True)
    if m == 16:
        return small
    if generation == 90:
        return replace(large, warps=8 if m == 64 else 4)
    return replace(large, weight_first=True) if m == 64 else small


def _few_int8_blocks(m: int, _generation: int, _wide: bool) -> TileConfig:
    """Weights of 8 bits under 16-bit x, with a product and its scales beside the sums."""
    return TileConfig(m=m, n=64, k=64 if m == 64 else 128, warps=4, stages=0, per_sm=2)


def _with_stages(tile: TileConfig, problem: MatmulProblem, limits: GpuLimits) -> TileConfig:
    """The tile with as many pipeline stages as fit in an SM's shared memory at its occupancy."""
    available_bytes = min(limits.shared_bytes_per_block, limits.shared_bytes_per_sm // tile.per_sm - 1024)
    stage_bytes = tile.k * (tile.m * problem.x_bytes + tile.n * problem.weight_bytes)
    by_wgmma = generation_of(limits) in {90, 100} and (tile.m >= 64 or tile.weight_first)
    if problem.kind == "int8_weight" and by_wgmma and not tile.weight_first:
        available_bytes -= tile.n * tile.k  # the converted weights
    # 1 KB for barriers and for the epilogue.
    fitting = (available_bytes - 1024) // stage_bytes
    # mma.sync copies a tile to registers first, which frees its stage.
    stages = max(2, min(16, fitting if by_wgmma else fitting + 1))
    # Without a limit the compiler may spill to use fewer registers.
    return replace(tile, stages=stages, max_registers=registers_for(tile.warps, tile.per_sm))
