"""The launch plan of a `prefill_matmul` call: operands, tiling, grid and workspace. Touches no device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .block_scales import BlockScales, block_scales
from .matmul_tile_tables import MatmulProblem
from .matmul_tiling import TMA_FROM_CAPABILITY, MatmulTiling, choose_matmul_tiling

if TYPE_CHECKING:
    from .gpu_limits import GpuLimits
    from .scale_factors import Scale

_MAX_LANE_OFFSET = 2**31
_FLOAT8_ACCUMULATION_K = 128
"""Products that Hopper's tensor cores add up in about 14 bits, before the sum is promoted to float32."""
_TMA_ALIGNMENT = 16
"""Addresses and row strides, in bytes, of a tensor behind a TMA descriptor are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class MatmulPlan:
    """Operands as matrices, tiling, grid and workspace of one `prefill_matmul` call.

    Attributes:
        x: [batch, rows, in_features]: a view of x, or a copy if two strides cannot express its leading
            dimensions.
        weight: [batch, features, in_features]; a weight that all batches share has batch stride 0.
        tiling: tiling of the matmul kernel, its variant one that these operands allow.
        features: rows of the weight.
        gated: whether the weight holds gate and up rows, so that it has two rows per output column.
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
    tiling: MatmulTiling
    features: int
    gated: bool
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
        aligned = self.blocks.weight_block_n % (self.tiling.block_columns // (2 if self.gated else 1)) == 0
        if not self.gated:
            return "one" if aligned or self.blocks.weight.shape[1] == 1 else "each"
        up_aligned = self.out_features % (self.tiling.block_columns // 2) == 0
        if not aligned or not up_aligned:
            return "each"
        return "pairs" if self.tiling.variant == "pointers" else "halves"

    @property
    def integer_sums(self) -> bool:
        """Whether sums are int32, which hold those of int8 products exactly."""
        return self.x.dtype == torch.int8 and self.promoted_parts == 0

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
        return self.features // 2 if self.gated else self.features

    @property
    def wide(self) -> bool:
        """Whether offsets inside an operand's tile need 64 bits."""
        tiling = self.tiling
        weight_span = tiling.block_n + (self.out_features if self.gated else 0)
        return any(
            span * operand.stride(1) + tiling.block_k * operand.stride(2) >= _MAX_LANE_OFFSET
            for operand, span in ((self.x, tiling.block_m), (self.weight, weight_span))
        )


def plan_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    activation: str | None,
    precision: str,
    tiling: MatmulTiling | None,
    limits: GpuLimits,
    x_scale: Scale = None,
    weight_scale: Scale = None,
) -> MatmulPlan:
    """The plan of a call with checked arguments; `choose_matmul_tiling` fills in a missing tiling."""
    gated = activation == "swiglu"
    given_x, given_weight = x, weight
    x = _as_matrices(x) if weight.dim() == 2 else x
    batch, rows, in_features = x.shape
    blocks = block_scales(given_x, given_weight, x_scale, weight_scale, (batch, rows))
    weight = weight.expand(batch, *weight.shape[-2:])
    features = weight.shape[1]
    tma = batch == 1 and _fits_tma(x) and _fits_tma(weight)
    if tiling is None:
        problem = MatmulProblem(
            rows=rows,
            out_features=features,
            in_features=in_features,
            x_bytes=x.element_size(),
            weight_bytes=weight.element_size(),
            batch=batch,
            aligned=_loads_16_bytes(x[0]) and _loads_16_bytes(weight[0]),
            tma=tma,
            tf32=precision == "tf32",
            integer=x.dtype == torch.int8,
            scaled_k=None if blocks is None else blocks.part_k,
        )
        tiling = choose_matmul_tiling(problem, limits)
    if tiling.variant != "pointers" and not (tma and limits.compute_capability >= TMA_FROM_CAPABILITY):
        tiling = dataclasses.replace(tiling, variant="pointers")
    tiles = batch * math.ceil(rows / tiling.block_m) * math.ceil(features / tiling.block_columns)
    whole_tiles = tiles if tiling.num_splits == 1 else min(tiling.whole_tiles, tiles)
    hopper, is_float8 = limits.compute_capability // 10 == 9, x.dtype.itemsize == 1 and x.dtype != torch.int8
    part_k = min(
        _FLOAT8_ACCUMULATION_K if hopper and is_float8 else tiling.block_k,
        tiling.block_k if blocks is None else blocks.part_k,
    )
    is_promoted = (hopper and is_float8) or blocks is not None
    promoted_parts = math.ceil(tiling.block_k / part_k) if is_promoted else 0
    return MatmulPlan(
        x=x,
        weight=weight,
        tiling=tiling,
        features=features,
        gated=gated,
        whole_tiles=whole_tiles,
        split_tiles=tiles - whole_tiles,
        float8_bits=limits.compute_capability < 89 and torch.float8_e4m3fn in (x.dtype, weight.dtype),
        # Triton 3.9.0 lacks a wait where the epilogue of a flattened loop uses the part in flight.
        flattens=hopper and promoted_parts <= 1,
        promoted_parts=promoted_parts,
        blocks=blocks,
    )


def result_matrices(out: torch.Tensor, plan: MatmulPlan) -> torch.Tensor:
    """The result [batch, rows, out_features], a view."""
    batch, rows, _ = plan.x.shape
    if out.dim() == 3 and out.shape[:2] == (batch, rows):
        return out
    return out.view(-1, plan.out_features).view(batch, rows, plan.out_features)


def _as_matrices(x: torch.Tensor) -> torch.Tensor:
    """[..., K] as [batch, rows, K], with the fewest batches that strides allow; a copy if none do."""
    for leading in range(x.dim()):
        try:
            return x.view(math.prod(x.shape[:leading]), math.prod(x.shape[leading:-1]), x.shape[-1])
        except RuntimeError:  # the strides of these dimensions do not merge
            continue
    return x.reshape(1, -1, x.shape[-1])


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
