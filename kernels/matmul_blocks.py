"""Tiles that `prefill_matmul` is cut into, by what is multiplied and on which GPU: data, and who picks it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .tiling import registers_for

if TYPE_CHECKING:
    from .tiling import GpuLimits

Kind = Literal["float16", "float8", "int8_weight", "tf32", "float32"]
"""What is multiplied: 16-bit floats, 8-bit floats, 16-bit floats by int8 weights, float32 in two ways."""

# Of the datasheets, by compute capability: operations (dense, 16 bits) and bytes from memory that an SM has a
# second, and bytes of the L2 cache.
SM_RATES = {
    80: (2.89e12, 18.9e9, 40 << 20),
    86: (0.87e12, 11.4e9, 6 << 20),
    89: (2.55e12, 6.1e9, 48 << 20),
    90: (7.49e12, 25.4e9, 50 << 20),
    100: (15.2e12, 54.1e9, 126 << 20),
    120: (1.23e12, 10.5e9, 96 << 20),
}


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product, as the chooser sees it: bytes are of an element; `features` are rows of the weight."""

    batch: int
    rows: int
    features: int
    in_features: int
    x_bytes: int
    weight_bytes: int
    kind: Kind
    aligned: bool

    @property
    def operations(self) -> float:
        """2 M N K a batch."""
        return 2.0 * self.batch * self.rows * self.features * self.in_features

    @property
    def input_bytes(self) -> int:
        """Of x and weight, once."""
        x, weight = self.rows * self.x_bytes, self.features * self.weight_bytes
        return self.batch * self.in_features * (x + weight)

    @property
    def result_bytes(self) -> int:
        """Of a result of at least 16 bits."""
        return self.batch * self.rows * self.features * max(2, self.x_bytes)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A tile and its program; `per_sm` of them run on an SM at one time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    per_sm: int = 1
    weight_first: bool = False
    max_registers: int | None = None


def kind_of(x_bytes: int, weight_bytes: int, *, tf32: bool) -> Kind:
    """What elements of these sizes are."""
    if x_bytes == 4:
        return "tf32" if tf32 else "float32"
    if x_bytes == 1:
        return "float8"
    return "int8_weight" if weight_bytes == 1 else "float16"


def generation_of(limits: GpuLimits) -> int:
    """The newest compute capability of the table that is not newer than the GPU's."""
    return max((each for each in SM_RATES if each <= limits.compute_capability), default=80)


_LARGEST = Block(m=128, n=256, k=64, warps=8, stages=4)
_SQUARE = Block(m=128, n=128, k=64, warps=8, stages=3)
_TWO_SQUARES = replace(_SQUARE, per_sm=2, max_registers=registers_for(8, 2))
_NARROW = Block(m=128, n=64, k=64, warps=4, stages=4, per_sm=2)
_FLOAT8_K = 128  # as many bytes as 64 elements of 16 bits

# Tiles of many rows by what is multiplied and the GPU, the largest first; a GPU not named has those of the
# next older one.
_MANY_ROWS: dict[Kind, dict[int, tuple[Block, ...]]] = {
    "float16": {
        80: (replace(_LARGEST, stages=3), _SQUARE, _NARROW),
        86: (_SQUARE, replace(_NARROW, stages=3)),
        # A fourth stage costs instructions where tiles overlap.
        90: (replace(_LARGEST, stages=3), _TWO_SQUARES, _NARROW),
        100: (_LARGEST, _TWO_SQUARES, _NARROW),
        120: (_SQUARE, replace(_NARROW, stages=3)),
    },
    "float8": {
        80: (Block(m=64, n=128, k=64, warps=4, stages=3, per_sm=2),),
        89: (_SQUARE,),
        # Sums are kept a second time, in full precision, which takes registers.
        90: (replace(_SQUARE, stages=4, k=_FLOAT8_K),),
        100: tuple(replace(block, k=_FLOAT8_K) for block in (_LARGEST, _TWO_SQUARES, _NARROW)),
        120: (_SQUARE,),
    },
    "int8_weight": {
        80: (_SQUARE,),
        86: (replace(_SQUARE, k=32),),
        90: (replace(_LARGEST, stages=3), _TWO_SQUARES),
        100: (_LARGEST,),  # converting is the limit of smaller ones
        120: (replace(_SQUARE, k=32),),
    },
    "tf32": {80: (replace(_SQUARE, k=32),)},
    # IEEE float32 products run on the plain units, out of registers: small tiles, short steps.
    "float32": {80: (Block(m=128, n=64, k=16, warps=8, stages=3, per_sm=2),)},
}

# Loads of one element each pass through registers: a large tile would not fit there.
_UNALIGNED_ROWS: dict[Kind, Block] = {
    "float16": Block(m=64, n=128, k=32, warps=8, stages=2, per_sm=2),
    "float8": Block(m=64, n=64, k=32, warps=8, stages=2, per_sm=2),
    "int8_weight": Block(m=64, n=128, k=32, warps=8, stages=2, per_sm=2),
    "tf32": Block(m=64, n=64, k=32, warps=8, stages=2, per_sm=2),
    "float32": Block(m=32, n=64, k=16, warps=8, stages=3, per_sm=3),
}


def many_row_blocks(product: Product, limits: GpuLimits) -> tuple[Block, ...]:
    """Tiles of many rows, the largest first."""
    if not product.aligned:
        return (_UNALIGNED_ROWS[product.kind],)
    generation = generation_of(limits)
    by_generation = _MANY_ROWS[product.kind]
    blocks = by_generation[max(each for each in by_generation if each <= generation)]
    # Masks of uneven columns take the registers that sm_80 needs for the largest tile.
    tight = generation == 80 and product.features % 256
    return tuple(block for block in blocks if not (tight and block.n == 256))


def few_row_block(product: Product, m: int, limits: GpuLimits) -> Block:
    """The tile of `m` rows, 16 to 64, its pipeline filling half of an SM's shared memory, or all of it."""
    if product.kind == "float32":
        return Block(m=m, n=64, k=32 if m == 16 else 16, warps=4, stages=3)
    if not product.aligned:
        return replace(_UNALIGNED_ROWS[product.kind], m=m, per_sm=1)
    generation = generation_of(limits)
    # Where there are tiles enough, wide ones ask L2 for less of x.
    wide = product.features >= 2 * 64 * limits.sm_count
    pick = {"float16": _few_float16, "float8": _few_float8, "int8_weight": _few_int8, "tf32": _few_tf32}
    return _staged(pick[product.kind](m, generation, wide), product, limits)


def _few_float16(m: int, generation: int, wide: bool) -> Block:
    if m == 64:
        # On sm_100 narrower tiles of weights would leave too little of the shared memory to them.
        if generation == 100:
            return Block(m=m, n=64, k=32, warps=4, stages=0, per_sm=2)
        return Block(m=m, n=64 if wide else 32, k=64, warps=4, stages=0, per_sm=2)
    n = 64 if wide else 32
    return Block(m=m, n=n, k=4096 // n, warps=4, stages=0, per_sm=2)


def _few_tf32(m: int, _generation: int, _wide: bool) -> Block:
    return Block(m=m, n=64 if m == 64 else 32, k=32, warps=4, stages=0, per_sm=2)


def _few_float8(m: int, generation: int, wide: bool) -> Block:
    if generation == 100 and m < 64 and not wide:
        return Block(m=m, n=32, k=256, warps=4, stages=0, per_sm=2)
    k = 64 if generation == 100 and m == 64 else 128
    # Warp-group products have at least 64 rows: those of the weight.
    swapped = m < 64 and generation in {90, 100}
    return Block(m=m, n=64, k=k, warps=4, stages=0, per_sm=2, weight_first=swapped)


def _few_int8(m: int, generation: int, _wide: bool) -> Block:
    """Tiles of weights that are converted in registers, as large as their instructions need to be few."""
    large = Block(m=m, n=128, k=64, warps=4, stages=0, per_sm=2)
    small = replace(large, n=64, k=128)
    if generation == 100:
        # Converted weights pass through tensor memory, as the operand on top.
        return replace(large, k=64 if m == 64 else 128, per_sm=2 if m == 16 else 1, weight_first=True)
    if m == 16:
        return small
    if generation == 90:
        return replace(large, warps=8 if m == 64 else 4)
    return replace(large, weight_first=True) if m == 64 else small


def _staged(block: Block, product: Product, limits: GpuLimits) -> Block:
    """The block with as many stages as let its programs fill the shared memory of an SM."""
    room = min(limits.shared_bytes_per_block, limits.shared_bytes_per_sm // block.per_sm - 1024)
    stage = block.k * (block.m * product.x_bytes + block.n * product.weight_bytes)
    by_warp_groups = generation_of(limits) in {90, 100} and (block.m >= 64 or block.weight_first)
    if product.kind == "int8_weight" and by_warp_groups and not block.weight_first:
        room -= block.n * block.k  # converted weights
    # What a program sends through shared memory beside tiles, and barriers.
    fit = (room - 1024) // stage
    # Products of single warps copy a tile to registers first, which frees its place.
    stages = max(2, min(16, fit if by_warp_groups else fit + 1))
    # Left alone, the compiler may spill to take fewer registers.
    return replace(block, stages=stages, max_registers=registers_for(block.warps, block.per_sm))
