"""Scales per block of K as the host sees them: which tensors have blocks, and their sizes, from shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .gpu_limits import next_power_of_two

if TYPE_CHECKING:
    from .scale_factors import Scale

LEAST_BLOCK_K = 32
"""Elements of K that one scale covers at least: the depth of an 8-bit tensor-core instruction."""


@dataclass(frozen=True, kw_only=True)
class BlockScales:
    """Scales of blocks of K, as the kernels take them; the scales of an operand without blocks are None.

    Attributes:
        x: [batch, rows, blocks of K].
        weight: [batch, blocks of rows, blocks of K].
        x_block_k: elements of K per block of x.
        weight_block_k: elements of K per block of the weight.
        weight_block_n: rows of the weight per block.
    """

    x: torch.Tensor | None
    weight: torch.Tensor | None
    x_block_k: int
    weight_block_k: int
    weight_block_n: int

    @property
    def part_k(self) -> int:
        """Elements of K that have the same scales."""
        return min(
            block_k
            for scales, block_k in ((self.x, self.x_block_k), (self.weight, self.weight_block_k))
            if scales is not None
        )


def block_size(elements: int, blocks: int) -> int | None:
    """The power of two that divides so many elements into so many blocks, the last one perhaps partial.

    It is unique if there are at least two blocks; a single block covers all elements.
    """
    size = next_power_of_two(math.ceil(elements / blocks))
    return size if math.ceil(elements / size) == blocks else None


def x_has_blocks(scale: Scale, x: torch.Tensor) -> bool:
    """Whether scales of x are per row and block of K: [..., blocks of K] with the leading dimensions of x."""
    return (
        isinstance(scale, torch.Tensor)
        and scale.dim() == x.dim()
        and scale.shape[:-1] == x.shape[:-1]
        and scale.shape[-1] > 1
    )


def weight_has_blocks(scale: Scale, weight: torch.Tensor) -> bool:
    """Whether scales of the weight are per block of rows and block of K: [(batch,) blocks, blocks of K].

    A last dimension of `rows`, and [rows, 1], are scales per row, but [rows, rows] are blocks of one row;
    [1, 1] is one scale.
    """
    if not isinstance(scale, torch.Tensor) or scale.dim() != weight.dim():
        return False
    batch_fits = scale.dim() == 2 or scale.shape[0] == weight.shape[0]
    rows = weight.shape[-2]
    blocks, blocks_k = scale.shape[-2:]
    per_row = (blocks_k == rows and blocks != rows) or (blocks, blocks_k) in {(rows, 1), (1, 1)}
    return batch_fits and not per_row


def block_scales(
    x: torch.Tensor, weight: torch.Tensor, x_scale: Scale, weight_scale: Scale, batches: tuple[int, int]
) -> BlockScales | None:
    """The block scales of a call with checked arguments; None if neither operand has any.

    Args:
        x: as `prefill_matmul` documents it.
        weight: likewise.
        x_scale: likewise.
        weight_scale: likewise.
        batches: batch and rows of x as the kernel multiplies it.
    """
    of_x = x_scale if x_has_blocks(x_scale, x) else None
    of_weight = weight_scale if weight_has_blocks(weight_scale, weight) else None
    if of_x is None and of_weight is None:
        return None
    assert not isinstance(of_x, float) and not isinstance(of_weight, float)  # noqa: S101, PT018  (for mypy)
    in_features, rows = x.shape[-1], weight.shape[-2]
    return BlockScales(
        # A view where the strides of its leading dimensions merge as those of x do.
        x=None if of_x is None else of_x.reshape(*batches, of_x.shape[-1]),
        weight=None if of_weight is None else of_weight.expand(batches[0], *of_weight.shape[-2:]),
        x_block_k=1 if of_x is None else block_size(in_features, of_x.shape[-1]) or 1,
        weight_block_k=1 if of_weight is None else block_size(in_features, of_weight.shape[-1]) or 1,
        weight_block_n=1 if of_weight is None else block_size(rows, of_weight.shape[-2]) or 1,
    )
