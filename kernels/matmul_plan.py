"""The launch plan of a `prefill_matmul` call: operands, tiling, grid and workspace. Touches no device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .matmul_operands import (
    GATED_ACTIVATIONS,
    HALVES,
    INTERLEAVED,
    NO_PAIR,
    Pair,
    as_matrices,
    elements_between,
    gate_of,
)
from .matmul_scale_shapes import BlockScales, block_scales
from .matmul_tile_tables import MatmulProblem
from .matmul_tiling import TMA_FROM_CAPABILITY, MatmulTiling, choose_matmul_tiling

if TYPE_CHECKING:
    from .gpu_limits import GpuLimits
    from .scale_factors import Scale, WeightScale

_MAX_LANE_OFFSET = 2**31
_FLOAT8_ACCUMULATION_K = 128
"""Products that Hopper's tensor cores add up in about 14 bits, before the sum is promoted to float32."""
_TF32_PRODUCTS = {"ieee": 0, "tf32": 1, "tf32x3": 3}
_TMA_ALIGNMENT = 16
"""Addresses and row strides, in bytes, of a tensor behind a TMA descriptor are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class MatmulPlan:
    """Operands as matrices, tiling, grid and workspace of one `prefill_matmul` call.

    Attributes:
        x: [batch, rows, in_features]: a view of x, or a copy if two strides cannot express its leading
            dimensions.
        weight: [batch, features, in_features]; a weight that all batches share has batch stride 0. With a
            weight each for gate and up, that of the gate: [batch, features / 2, in_features].
        up_weight: the weight of up where gate and up have one each, else None.
        tiling: tiling of the matmul kernel, its variant one that these operands allow.
        features: rows of the weight, or of both.
        layout: NO_PAIR, or how the weight holds two rows per output column: HALVES or INTERLEAVED.
        row_stride: elements from a row of the weight to the next; with gate and up, from pair to pair.
        up_offset: elements from a gate row to its up row, which may be in another tensor; 0 without.
        whole_tiles: leading tiles that are not split along K.
        split_tiles: the other tiles: the split-K tail.
        float8_bits: whether float8 e4m3 is decoded from its bits, because the GPU has no instructions for it.
        flattens: whether to flatten the persistent tile loop; on sm_100 that adds too many instructions.
        promoted_parts: parts of a K step whose products are each added to a float32 accumulator; 0 where the
            tensor cores accumulate over all of K, in float32 or int32.
        blocks: scales per block of K; None without any.
    """

    x: torch.Tensor
    weight: torch.Tensor
    up_weight: torch.Tensor | None
    tiling: MatmulTiling
    features: int
    layout: int
    row_stride: int
    up_offset: int
    whole_tiles: int
    split_tiles: int
    float8_bits: bool
    flattens: bool
    promoted_parts: int
    blocks: BlockScales | None

    @property
    def block_scales(self) -> str:
        """How the weight's block scales vary over the columns of a tile; see `scale_pointers`."""
        if self.blocks is None:
            return "none"
        if self.blocks.weight is None:
            return "one"
        halves = self.layout == HALVES  # interleaved rows are rows like others
        aligned = self.blocks.weight_block_n % (self.tiling.block_columns // (2 if halves else 1)) == 0
        if not halves:
            return "one" if aligned or self.blocks.weight.shape[1] == 1 else "each"
        up_aligned = self.out_features % (self.tiling.block_columns // 2) == 0
        if not aligned or not up_aligned:
            return "each"
        return "pairs" if self.tiling.variant == "pointers" else "halves"

    @property
    def integer_products(self) -> bool:
        """Whether int8 is multiplied by int8: products are int32."""
        return self.x.dtype == self.weight.dtype == torch.int8

    @property
    def integer_sums(self) -> bool:
        """Whether sums are int32, which hold those of int8 products exactly."""
        return self.integer_products and self.promoted_parts == 0

    @property
    def items(self) -> int:
        """Work items: whole tiles, and one item per K split of the others."""
        return self.whole_tiles + self.split_tiles * self.tiling.num_splits

    @property
    def workspace_bytes(self) -> int:
        """Bytes of split-K partial sums: one float32 tile per K split."""
        return 4 * self.tiling.block_m * self.tiling.block_n * self.split_tiles * self.tiling.num_splits

    @property
    def out_features(self) -> int:
        """Columns of the result."""
        return self.features // 2 if self.layout else self.features

    @property
    def wide(self) -> bool:
        """Whether offsets inside an operand's tile need 64 bits."""
        tiling = self.tiling
        x_span = tiling.block_m * self.x.stride(1) + tiling.block_k * self.x.stride(2)
        weight_span = tiling.block_n * self.row_stride + tiling.block_k * self.weight.stride(2)
        return max(x_span, weight_span + abs(self.up_offset)) >= _MAX_LANE_OFFSET


def plan_matmul(
    x: torch.Tensor,
    weight: torch.Tensor | Pair,
    activation: str | None,
    gate_up: str,
    precision: str,
    tiling: MatmulTiling | None,
    limits: GpuLimits,
    x_scale: Scale = None,
    weight_scale: WeightScale = None,
    *,
    by_batch: bool = False,
) -> MatmulPlan:
    """The plan of a call with checked arguments; `choose_matmul_tiling` fills in a missing tiling.

    `by_batch` keeps the first dimension of x as the batch though all batches share a weight.
    """
    layout = NO_PAIR
    if activation in GATED_ACTIVATIONS:
        layout = INTERLEAVED if gate_up == "interleaved" else HALVES
    first, given_x = gate_of(weight), x
    x = as_matrices(x) if first.dim() == 2 and not by_batch else x
    batch, rows, in_features = x.shape
    of_weight = None if isinstance(weight, tuple) or isinstance(weight_scale, tuple) else weight_scale
    blocks = block_scales(given_x, first, x_scale, of_weight, (batch, rows))
    first = first.expand(batch, *first.shape[-2:])
    features = first.shape[1] * (2 if isinstance(weight, tuple) else 1)
    row_stride, up_offset = first.stride(1), 0
    tma = batch == 1 and _fits_tma(x) and _fits_tma(first)
    if isinstance(weight, tuple):
        up_offset = elements_between(*weight)
        tma = tma and weight[1].data_ptr() % _TMA_ALIGNMENT == 0
    elif layout == HALVES:
        up_offset = features // 2 * row_stride
    elif layout == INTERLEAVED:
        row_stride, up_offset = 2 * row_stride, row_stride
    is_integer = x.dtype == first.dtype == torch.int8
    if tiling is None:
        problem = MatmulProblem(
            rows=rows,
            out_features=features,
            in_features=max(1, in_features),
            x_bytes=x.element_size(),
            weight_bytes=first.element_size(),
            batch=batch,
            aligned=_loads_16_bytes(x[0]) and _loads_16_bytes(first[0]),
            tma=tma,
            tf32=_TF32_PRODUCTS[precision],
            integer=is_integer,
            scaled_k=None if blocks is None else blocks.part_k,
            column_scales=_columns_have_scales(blocks, features, layout),
        )
        tiling = choose_matmul_tiling(problem, limits)
    if tiling.variant != "pointers" and not (tma and limits.compute_capability >= TMA_FROM_CAPABILITY):
        tiling = dataclasses.replace(tiling, variant="pointers")
    tiles = batch * math.ceil(rows / tiling.block_m) * math.ceil(features / tiling.block_columns)
    whole_tiles = tiles if tiling.num_splits == 1 else min(tiling.whole_tiles, tiles)
    hopper = limits.compute_capability // 10 == 9
    is_float8 = x.element_size() == first.element_size() == 1 and not is_integer
    part_k = min(
        _FLOAT8_ACCUMULATION_K if hopper and is_float8 else tiling.block_k,
        tiling.block_k if blocks is None else blocks.part_k,
    )
    is_promoted = (hopper and is_float8) or blocks is not None
    promoted_parts = math.ceil(tiling.block_k / part_k) if is_promoted else 0
    return MatmulPlan(
        x=x,
        weight=first,
        up_weight=weight[1] if isinstance(weight, tuple) else None,
        tiling=tiling,
        features=features,
        layout=layout,
        row_stride=row_stride,
        up_offset=up_offset,
        whole_tiles=whole_tiles,
        split_tiles=tiles - whole_tiles,
        float8_bits=limits.compute_capability < 89 and torch.float8_e4m3fn in (x.dtype, first.dtype),
        # Triton 3.9.0 lacks a wait where the epilogue of a flattened loop uses the part in flight.
        flattens=hopper and promoted_parts <= 1,
        promoted_parts=promoted_parts,
        blocks=blocks,
    )


def _columns_have_scales(blocks: BlockScales | None, features: int, layout: int) -> bool:
    """Whether block scales of the weight vary over the columns of a tile of 128."""
    if blocks is None or blocks.weight is None or blocks.weight.shape[1] == 1:
        return False
    columns = 64 if layout == HALVES else 128
    return blocks.weight_block_n % columns != 0 or (layout == HALVES and features // 2 % columns != 0)


def _loads_16_bytes(operand: torch.Tensor) -> bool:
    """Whether Triton can load rows (or columns) 16 bytes at a time.

    Its argument specialisation records only whether 16 divides a pointer, a stride or a size.
    """
    for along, across in ((1, 0), (0, 1)):
        if operand.stride(along) == 1:
            sizes = (operand.data_ptr(), operand.stride(across), operand.shape[along])
            return all(size % 16 == 0 for size in sizes)
    return False


def _fits_tma(operand: torch.Tensor) -> bool:
    """Whether the TMA can load [batch, rows, K]: K contiguous, address and row stride aligned to 16 bytes.

    Otherwise the TMA silently reads wrong addresses.
    """
    size = operand.element_size()
    return (
        operand.stride(2) == 1
        and operand.stride(1) > 0
        and operand.data_ptr() % _TMA_ALIGNMENT == 0
        and operand.stride(1) * size % _TMA_ALIGNMENT == 0
    )
