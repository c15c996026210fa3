"""One call of `prefill_matmul`: its shapes, how it is cut, and what memory that takes. Touches no device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .matmul_tiling import DESCRIPTORS_FROM, MatmulTiling, choose_matmul_tiling

if TYPE_CHECKING:
    from .tiling import GpuLimits

_MOST_LANE_OFFSET = 2**31
_IMPRECISE_SUMS = 128
_DESCRIPTOR_BYTES = 16
"""What addresses and strides of a tensor that descriptors load must be multiples of."""


@dataclass(frozen=True, kw_only=True)
class MatmulCall:
    """The operands of a call as matrices, and how it is cut.

    Attributes:
        x: [batch, rows, in_features], a view of x but where its leading dimensions have no two strides.
        weight: [batch, features, in_features]; one that all batches share has stride 0.
        tiling: of the product's kernel, its variant one that these operands allow.
        features: rows of the weight.
        gated: whether the weight holds gate and up, so that it has twice as many rows.
        whole_tiles: tiles that are not cut along K, the first ones.
        split_tiles: the others.
        float8_bits: whether elements of float8 e4m3 are decoded from their bits.
        flattens: whether one loop of items and steps pays; on sm_100 it costs too many instructions.
        imprecise_sums: of how many products in a row the matrix units may keep a sum of low precision.
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
    imprecise_sums: int | None

    @property
    def items(self) -> int:
        """Whole tiles, and shares of the others."""
        return self.whole_tiles + self.split_tiles * self.tiling.num_splits

    @property
    def workspace_bytes(self) -> int:
        """A float32 tile a share of K."""
        return 4 * self.tiling.block_m * self.tiling.block_n * self.split_tiles * self.tiling.num_splits

    @property
    def out_features(self) -> int:
        """Columns of the result."""
        return self.features // 2 if self.gated else self.features

    @property
    def wide(self) -> bool:
        """Whether an operand's tile reaches over offsets of more than 32 bits."""
        tiling = self.tiling
        weight_span = tiling.block_n + (self.out_features if self.gated else 0)
        return any(
            span * operand.stride(1) + tiling.block_k * operand.stride(2) >= _MOST_LANE_OFFSET
            for operand, span in ((self.x, tiling.block_m), (self.weight, weight_span))
        )


def matmul_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    activation: str | None,
    precision: str,
    tiling: MatmulTiling | None,
    limits: GpuLimits,
) -> MatmulCall:
    """Cuts a call whose arguments have been checked, as the chooser says where `tiling` is none."""
    gated = activation == "swiglu"
    x = _as_matrices(x) if weight.dim() == 2 else x
    batch, rows, in_features = x.shape
    weight = weight.expand(batch, *weight.shape[-2:])
    features = weight.shape[1]
    by_descriptors = (
        batch == 1
        and limits.compute_capability >= DESCRIPTORS_FROM
        and _loaded_by_descriptors(x)
        and _loaded_by_descriptors(weight)
    )
    if tiling is None:
        tiling = choose_matmul_tiling(
            rows=rows,
            out_features=features,
            in_features=in_features,
            element_bytes=x.element_size(),
            weight_element_bytes=weight.element_size(),
            aligned=_loads_16_bytes(x[0]) and _loads_16_bytes(weight[0]),
            limits=limits,
            batch=batch,
            tf32=precision == "tf32",
            descriptors=by_descriptors,
        )
    if tiling.variant != "pointers" and not by_descriptors:
        tiling = dataclasses.replace(tiling, variant="pointers")
    tiles = batch * math.ceil(rows / tiling.block_m) * math.ceil(features / tiling.block_columns)
    whole_tiles = tiles if tiling.num_splits == 1 else min(tiling.whole_tiles, tiles)
    is_float8, hopper = x.element_size() == 1, limits.compute_capability // 10 == 9
    return MatmulCall(
        x=x,
        weight=weight,
        tiling=tiling,
        features=features,
        gated=gated,
        whole_tiles=whole_tiles,
        split_tiles=tiles - whole_tiles,
        float8_bits=limits.compute_capability < 89 and torch.float8_e4m3fn in (x.dtype, weight.dtype),
        flattens=hopper,
        imprecise_sums=min(tiling.block_k, _IMPRECISE_SUMS)
        if is_float8 and limits.compute_capability // 10 == 9
        else None,
    )


def result_matrices(out: torch.Tensor, call: MatmulCall) -> torch.Tensor:
    """The result [batch, rows, out_features], a view."""
    batch, rows, _ = call.x.shape
    if out.dim() == 3 and out.shape[:2] == (batch, rows):
        return out
    return out.view(-1, call.out_features).view(batch, rows, call.out_features)


def _as_matrices(x: torch.Tensor) -> torch.Tensor:
    """[..., K] as [batch, rows, K]: one matrix where one stride leads from row to row, else several."""
    for leading in range(x.dim()):
        try:
            return x.view(math.prod(x.shape[:leading]), math.prod(x.shape[leading:-1]), x.shape[-1])
        except RuntimeError:  # these dimensions have no one stride
            continue
    return x.reshape(1, -1, x.shape[-1])


def _loads_16_bytes(operand: torch.Tensor) -> bool:
    """Whether Triton sees that rows (or columns) can be loaded 16 bytes at a time.

    It knows of a pointer, a stride or a size only whether 16 divides it.
    """
    for along, across in ((1, 0), (0, 1)):
        if operand.stride(along) == 1:
            sizes = (operand.data_ptr(), operand.stride(across), operand.shape[along])
            return all(size % 16 == 0 for size in sizes)
    return False


def _loaded_by_descriptors(operand: torch.Tensor) -> bool:
    """Whether the copy engine takes [batch, rows, K] as it lies: K contiguous, all else in whole 16 bytes.

    What is not aligned so it would load from elsewhere without a word.
    """
    size = operand.element_size()
    return (
        operand.stride(2) == 1
        and operand.stride(1) > 0
        and operand.data_ptr() % _DESCRIPTOR_BYTES == 0
        and operand.stride(1) * size % _DESCRIPTOR_BYTES == 0
    )
