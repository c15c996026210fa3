"""How the tensors of a case lie in memory."""

import mmap
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["number", "one", "each", "sequence", "token", "split"]
"""A Python number, a tensor of one element, or of one element for each head or row; for decode attention also
for each sequence and head, for each token and head, and two of a latent: of its values and of the rest."""

Layout = Literal["", "heads_first", "offset", "odd_rows", "padded_rows", "huge", "huge_tokens"]
"""Contiguous; heads before tokens; one element past an aligned address; rows one or eight elements longer
than what they hold; 3 x 2^30 elements from end to end of the first dimension, or of the tokens."""

_HUGE_ELEMENTS = 3 << 30
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux: pages take no memory until they are touched


def laid_out(values: Tensor, layout: Layout) -> Tensor:
    """The same values in memory of another layout."""
    match layout:
        case "":
            return values
        case "heads_first":
            return values.transpose(1, 2).contiguous().transpose(1, 2)
        case "offset":
            out = torch.empty(values.numel() + 1, dtype=values.dtype)[1:].view(values.shape)
        case "odd_rows" | "padded_rows":
            width = values.shape[-1]
            row = width + (1 if layout == "odd_rows" else 8)
            out = torch.empty((*values.shape[:-1], row), dtype=values.dtype)[..., :width]
        case "huge" | "huge_tokens":
            out = _spread(values, dim=0 if layout == "huge" else 1)
    return out.copy_(values)


def _spread(values: Tensor, *, dim: int) -> Tensor:
    """Memory for `values` with a huge stride of one dimension."""
    shape, strides = values.shape, list(values.stride())
    strides[dim] = _HUGE_ELEMENTS // max(1, shape[dim] - 1) // 16 * 16
    if values.dim() > 3 and dim == 1:  # the sequences lie side by side within a token
        strides[0] = strides[2] * shape[2]
        strides[1] = max(strides[1], strides[0] * shape[0])
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    size_bytes = elements * values.element_size()
    area = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    return torch.frombuffer(area, dtype=torch.uint8).view(values.dtype).as_strided(shape, strides)
