"""How scales of `decode_attention` that are tensors lie in memory, as its kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .decode_plan import DecodePlan


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Float8 e4m3 as uint8, for GPUs without instructions for it; others unchanged."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


@dataclass(frozen=True, kw_only=True)
class CacheScale:
    """A scale of a cache that is a tensor, and its strides; 0 along what it does not depend on."""

    tensor: torch.Tensor | None
    per_token: bool = False
    stride_batch: int = 0
    stride_head: int = 0
    stride_token: int = 0
    stride_page: int = 0

    @classmethod
    def of(cls, scale: torch.Tensor | None, plan: DecodePlan) -> CacheScale:
        """From a number of dimensions: [kv_heads], [batch, kv_heads], or those of the cache but head_dim."""
        if scale is None or scale.dim() == 0 or tuple(scale.shape) == (1,):
            return cls(tensor=scale)
        batch = scale.stride(0) if scale.dim() > 1 else 0
        if scale.dim() < 3:
            return cls(tensor=scale, stride_batch=batch, stride_head=scale.stride(-1))
        return cls(
            tensor=scale,
            per_token=True,
            stride_batch=batch,
            stride_head=scale.stride(2),
            stride_token=scale.stride(1),
            stride_page=batch if plan.page_size else 0,
        )


def q_scale_strides(
    scale: torch.Tensor | None, q: torch.Tensor, group: int, *, packed: bool
) -> dict[str, int]:
    """Strides of `q_scale` along sequences, query tokens, GQA groups and the heads of a group."""
    of_batch = of_token = of_group = of_head = 0
    if scale is not None and scale.numel() > 1:
        per_head = scale.shape[-1] == q.shape[-2]
        of_head = scale.stride(-1) if per_head else 0
        of_group = scale.stride(-1) * (group if per_head else 1)
        if packed and scale.shape == q.shape[:-1]:
            of_token = scale.stride(0)
        elif scale.dim() > 1:
            of_batch = scale.stride(0)
            of_token = scale.stride(1) if scale.dim() > 2 else 0
    return {
        "stride_q_scale_batch": of_batch,
        "stride_q_scale_token": of_token,
        "stride_q_scale_group": of_group,
        "stride_q_scale_head": of_head,
    }
